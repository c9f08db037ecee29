"""SANA: conv patch embedder (p = 1), [channels] head, linear attention, DC-AE latents (f32).

The 512 and 1024 px models have no positions. The pipelines' default size is 1024 px, whatever the config says, and
resolution binning picks sizes by `sample_size`: it would draw half the side and enlarge the image.
"""

from davae.backbones.base import Backbone

SANA = Backbone(
    class_name="SanaTransformer2DModel",
    convention="velocity",
    conditioning="Gemma text: prompt, negative_prompt (prompt_embeds, prompt_attention_mask)",
    embedders=("patch_embed.proj",),
    head="proj_out",
    default_size="asked",
    # The second feed-forward layer is a 1x1 conv.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.conv_point", "time_embed.linear"),
    call_with={"use_resolution_binning": False},
)
