"""The one place that says, per family of pretrained autoencoder, how `AutoencoderDA` takes hold of it.

Where the features are tapped, where they re-enter, and how the family spells encode and decode. A new
family is one entry here and one test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
from diffusers import ModelMixin
from torch import Tensor, nn


@dataclass(frozen=True)
class BaseFamily:
    """How one diffusers autoencoder class encodes, decodes and gives up its first and last convolution."""

    class_name: str
    encode: Callable[[Any, Tensor], Tensor]
    """(base, image [B, 3, H, W] in [-1, 1]) -> raw latent, deterministic (posterior mode)."""
    decode: Callable[[Any, Tensor], Tensor]
    """(base, raw latent) -> image [B, 3, H, W], nominally in [-1, 1], not clamped."""
    latent_channels: Callable[[Any], int]
    block_out_channels: Callable[[Any], list[int]]
    """Widths a level; 2 ** (len - 1) is the family's compression f."""
    last_weight: Callable[[nn.Module], nn.Parameter]
    """Weight of the decoder's last convolution, where the adversarial weight is measured."""
    shortcuts: tuple[tuple[str, str], ...] = ()
    """(part, attribute) switches of shortcuts around the replaced convolutions."""

    def replace_head(self, encoder: Any, make: Callable[[int], nn.Module]) -> None:
        """Put `make(feature_channels)` in the place of the encoder's last convolution."""
        encoder.conv_out = make(encoder.conv_out.in_channels)
        self._disable_shortcut("encoder", encoder)

    def replace_stem(self, decoder: Any, make: Callable[[int], nn.Module]) -> None:
        """Put `make(feature_channels)` in the place of the decoder's first convolution."""
        decoder.conv_in = make(decoder.conv_in.out_channels)
        self._disable_shortcut("decoder", decoder)

    def _disable_shortcut(self, part: str, module: nn.Module) -> None:
        for owner, attribute in self.shortcuts:
            if owner == part:
                setattr(module, attribute, False)


def _dc_last_weight(decoder: Any) -> nn.Parameter:
    # With a pixel-shuffle stem the last layer is an up block around its convolution.
    return decoder.conv_out.weight if isinstance(decoder.conv_out, nn.Conv2d) else decoder.conv_out.conv.weight


FAMILIES = {
    family.class_name: family
    for family in (
        BaseFamily(
            class_name="AutoencoderKL",
            encode=lambda base, image: base.encode(image).latent_dist.mode(),
            decode=lambda base, latent: base.decode(latent).sample,
            latent_channels=lambda config: config.latent_channels,
            block_out_channels=lambda config: list(config.block_out_channels),
            last_weight=lambda decoder: decoder.conv_out.weight,
        ),
        BaseFamily(
            class_name="AutoencoderDC",
            encode=lambda base, image: base.encode(image).latent,
            decode=lambda base, latent: base.decode(latent).sample,
            latent_channels=lambda config: config.latent_channels,
            block_out_channels=lambda config: list(config.encoder_block_out_channels),
            last_weight=_dc_last_weight,
            shortcuts=(("encoder", "out_shortcut"), ("decoder", "in_shortcut")),
        ),
    )
}


def family_of(class_name: str) -> BaseFamily:
    """The family of a diffusers class name; an unknown one is an error that lists the known ones."""
    if class_name not in FAMILIES:
        raise ValueError(
            f"Cannot use {class_name} as a base autoencoder; known families: {', '.join(sorted(FAMILIES))}. "
            f"Add an entry to davae.models.bases for another one."
        )
    return FAMILIES[class_name]


def build_base(class_name: str, config: dict[str, Any]) -> ModelMixin:
    """An untrained base autoencoder from its class name and config."""
    family_of(class_name)
    return getattr(diffusers, class_name).from_config(config)
