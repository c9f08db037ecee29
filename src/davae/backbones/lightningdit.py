"""LightningDiT: conv patch embedder, [p*p, channels] head, native time (1 = data), class labels."""

from typing import Any

from torch import Tensor

from davae.backbones.base import Backbone


def _velocity(transformer: Any, noisy: Tensor, time: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    return transformer(noisy, time, conditioning["label"]).sample


LIGHTNINGDIT = Backbone(
    class_name="LightningDiT",
    inputs=("x_embedder.proj.weight",),
    outputs=("final_layer.linear.weight", "final_layer.linear.bias"),
    output_groups=lambda config: config.patch_size**2,
    widened_config=lambda config, channels: {"in_channels": channels},
    num_tokens=lambda config, height, width: (height // config.patch_size) * (width // config.patch_size),
    fixed_grid=True,
    lora_targets=("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1"),
    heads=("x_embedder.proj", "final_layer.linear"),
    velocity=_velocity,
)
