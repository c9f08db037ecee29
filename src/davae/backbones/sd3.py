"""SD3 and SD3.5: conv patch embedder (p = 2), [p*p, channels] head, position table saved as a buffer.

`sample_size` only sets the default size of an image: positions are cropped out of the middle of the saved table.
"""

from davae.backbones.base import Backbone

SD3 = Backbone(
    class_name="SD3Transformer2DModel",
    convention="velocity",
    conditioning="CLIP and T5 text: prompt, negative_prompt (prompt_embeds, pooled_prompt_embeds)",
    embedders=("pos_embed.proj",),
    head="proj_out",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    refused={"StableDiffusion3InpaintPipeline": "it accepts latents of 16 channels only"},
)
