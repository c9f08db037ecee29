"""ControlNets of SD3 and SD3.5: two conv patch embedders (noisy latent, control latent), residuals instead of a head.

The control image goes through the same autoencoder as the images, so both embedders widen. An inpainting
ControlNet puts its mask after the latent's channels (`extra_conditioning_channels`), hence after the detail's. The
ControlNets of SD3.5-Large have no embedder for the noisy latent: their pipeline lends them the transformer's.
"""

from torch import Tensor, nn

from davae.backbones.base import Backbone, config_of


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    weights = model.state_dict()
    if config_of(model).use_pos_embed:
        return weights
    return {key: value for key, value in weights.items() if not key.startswith("pos_embed.")}


SD3_CONTROLNET = Backbone(
    class_name="SD3ControlNetModel",
    convention="velocity",
    condition="text",
    conditioned_on="control image: control_image; text as SD3",
    embedders=("pos_embed.proj", "pos_embed_input.proj"),
    head=None,
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    own_weights=_own_weights,
    takes_negative=True,
)
