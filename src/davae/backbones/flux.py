"""FLUX.1: the pipeline packs 2x2 latent positions, channel outermost (c * 4 + phase); linear embedder and head.

Rotary positions count tokens, and the timestep shift follows the number of tokens: both are those of the small
image. The pipelines' default size is 128 latent positions, whatever the config says.
"""

from davae.backbones.base import Backbone

FLUX = Backbone(
    class_name="FluxTransformer2DModel",
    convention="velocity",
    conditioning="T5 and pooled CLIP text: prompt (prompt_embeds, pooled_prompt_embeds); guidance_scale as an input",
    embedders=("x_embedder",),
    head="proj_out",
    packing=2,
    default_size="asked",
    # A single block's `proj_out` is the last layer of its attention and of its feed-forward part at once.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear", "proj_out", "norm.linear"),
)
