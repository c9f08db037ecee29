"""FLUX.2: packed and embedded as FLUX.1, without biases; latent statistics are the autoencoder's batch norm.

AdaLN is shared by all blocks of a kind. Reference images become further tokens of the same width.
"""

from davae.backbones.base import Backbone

FLUX2 = Backbone(
    class_name="Flux2Transformer2DModel",
    convention="velocity",
    condition="text",
    conditioned_on="language model text: prompt (prompt_embeds), reference images: image; guidance_scale as an input",
    embedders=("x_embedder",),
    head="proj_out",
    packing=2,
    default_size="asked",
    takes_negative=False,  # guidance is an input of its model
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0", "ff.linear_out", "double_stream_modulation_img.linear"),
        # A single block fuses queries, keys and values with the first feed-forward layer, and the two last layers.
        *("attn.to_qkv_mlp_proj", "attn.to_out", "single_stream_modulation.linear"),
    ),
)
