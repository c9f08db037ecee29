"""The one place that says, per family of pretrained autoencoder, how `AutoencoderDA` takes hold of it.

Where the features are tapped, where they re-enter, and how the family spells encode and decode. A new
family is one entry here and one test.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

STRUCTURED = "AutoencoderDA"
"""Class name of an upgraded autoencoder, which is no base."""


def _conv_out(part: nn.Module) -> str:
    return "conv_out"


def _conv_in(part: nn.Module) -> str:
    return "conv_in"


@dataclass(frozen=True)
class BaseFamily:
    """How one autoencoder class encodes, decodes and gives up its first and last convolution.

    The convolutions are named by their path inside the encoder or decoder. Functions have names, because models are
    pickled with their family.
    """

    class_name: str
    encode: Callable[[ModelMixin, Tensor], Tensor]
    """(base, image [B, 3, H, W] in [-1, 1]) -> raw latent, deterministic (posterior mode)."""
    head: Callable[[nn.Module], str] = _conv_out
    """encoder -> its last convolution, features to latent: the detail features are tapped before it."""
    stem: Callable[[nn.Module], str] = _conv_in
    """decoder -> its first convolution, latent to features: the joint latent enters in its place."""
    tail: Callable[[nn.Module], str] = _conv_out
    """decoder -> its last convolution, where the adversarial weight is measured."""
    widths: str = "block_out_channels"
    """Config entry with the widths a level; 2 ** (its length - 1) is the family's compression f."""
    shortcuts: tuple[tuple[str, str], ...] = ()
    """(part, attribute) switches of shortcuts around the replaced convolutions."""
    has_posterior: bool = False
    """Whether `encode` gives a distribution (`latent_dist`) rather than a latent."""
    can_checkpoint: bool = True
    """Whether diffusers' gradient checkpointing is there for this class and computes the same function."""
    module: str = "diffusers"

    def decode(self, base: ModelMixin, latent: Tensor) -> Tensor:
        """Raw latent -> image [B, 3, H, W], nominally in [-1, 1], not clamped."""
        return base.decode(latent).sample

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """C of an autoencoder with this config."""
        return config["latent_channels"]

    def block_out_channels(self, config: Mapping[str, Any]) -> list[int]:
        """Widths a level."""
        return list(config[self.widths])

    def compression(self, config: Mapping[str, Any]) -> int:
        """f: pixels a side that a latent position stands for."""
        return 2 ** (len(config[self.widths]) - 1)

    def replace_head(self, encoder: nn.Module, make: Callable[[int], nn.Module]) -> None:
        """Put `make(feature_channels)` in the place of the encoder's last convolution."""
        name = self.head(encoder)
        encoder.set_submodule(name, make(convolution(encoder, name).in_channels))
        self._disable_shortcut("encoder", encoder)

    def replace_stem(self, decoder: nn.Module, make: Callable[[int], nn.Module]) -> None:
        """Put `make(feature_channels)` in the place of the decoder's first convolution."""
        name = self.stem(decoder)
        decoder.set_submodule(name, make(convolution(decoder, name).out_channels))
        self._disable_shortcut("decoder", decoder)

    def head_of(self, encoder: nn.Module) -> nn.Module:
        """What stands in the place of the encoder's last convolution."""
        return encoder.get_submodule(self.head(encoder))

    def stem_of(self, decoder: nn.Module) -> nn.Module:
        """What stands in the place of the decoder's first convolution."""
        return decoder.get_submodule(self.stem(decoder))

    def folded_head(self, encoder: nn.Module) -> tuple[Tensor, Tensor]:
        """A base encoder's last convolution, its shortcut folded in: weight [C, F, 3, 3] and bias [C]."""
        weight, bias = _weight_and_bias(convolution(encoder, self.head(encoder)))
        if self._has_shortcut("encoder", encoder):  # means of groups of consecutive features
            channels, features = weight.shape[:2]
            weight[:, :, 1, 1] += _eye(weight, channels).repeat_interleave(features // channels, dim=1) * (
                channels / features
            )
        return weight, bias

    def folded_stem(self, decoder: nn.Module) -> tuple[Tensor, Tensor]:
        """A base decoder's first convolution, its shortcut folded in: weight [F, C, 3, 3] and bias [F]."""
        weight, bias = _weight_and_bias(convolution(decoder, self.stem(decoder)))
        if self._has_shortcut("decoder", decoder):  # every channel, several times in a row
            features, channels = weight.shape[:2]
            weight[:, :, 1, 1] += _eye(weight, channels).repeat_interleave(features // channels, dim=0)
        return weight, bias

    def last_weight(self, decoder: nn.Module) -> nn.Parameter:
        """Weight of the decoder's last convolution."""
        return weight_of(decoder, self.tail(decoder))

    def _has_shortcut(self, part: str, module: nn.Module) -> bool:
        return any(owner == part and getattr(module, attribute) for owner, attribute in self.shortcuts)

    def _disable_shortcut(self, part: str, module: nn.Module) -> None:
        for owner, attribute in self.shortcuts:
            if owner == part:
                setattr(module, attribute, False)


def convolution(part: nn.Module, path: str) -> nn.Conv2d:
    """The convolution at a path inside an encoder or decoder.

    Raises:
        TypeError: something else is there.
    """
    layer = part.get_submodule(path)
    if not isinstance(layer, nn.Conv2d):
        raise TypeError(
            f"{type(part).__name__} has no convolution at {path}; got a {type(layer).__name__}. Correct the entry of "
            f"its autoencoder in davae.models.bases."
        )
    return layer


def weight_of(part: nn.Module, path: str) -> nn.Parameter:
    """Weight of the convolution at a path inside an encoder or decoder."""
    # Not get_parameter, which refuses the stand-ins of torch.func.functional_call.
    return cast(nn.Parameter, convolution(part, path).weight)


def _weight_and_bias(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    return layer.weight.detach().clone(), layer.get_parameter("bias").detach()


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _mode(base: ModelMixin, image: Tensor) -> Tensor:
    return base.encode(image).latent_dist.mode()


def _latent(base: ModelMixin, image: Tensor) -> Tensor:
    return base.encode(image).latent


def _latents(base: ModelMixin, image: Tensor) -> Tensor:
    return base.encode(image).latents


def _last_layer(part: nn.Module) -> str:
    return f"layers.{len(list(part.get_submodule('layers').children())) - 1}"


def _first_layer(part: nn.Module) -> str:
    return "layers.0"


def _dc_tail(decoder: nn.Module) -> str:
    # With a pixel-shuffle stem the last layer is an up block around its convolution.
    return "conv_out" if isinstance(decoder.conv_out, nn.Conv2d) else "conv_out.conv"


FAMILIES = {
    family.class_name: family
    for family in (
        # SD, SDXL, SD3, FLUX.1, VA-VAE
        BaseFamily("AutoencoderKL", encode=_mode, has_posterior=True),
        # FLUX.2: its statistics are those of a batch norm over packed latents, see `declared_scaling`
        BaseFamily("AutoencoderKLFlux2", encode=_mode, has_posterior=True),
        # DC-AE, of SANA. diffusers 0.42 has no checkpointing for it.
        BaseFamily(
            "AutoencoderDC",
            encode=_latent,
            tail=_dc_tail,
            widths="encoder_block_out_channels",
            shortcuts=(("encoder", "out_shortcut"), ("decoder", "in_shortcut")),
            can_checkpoint=False,
        ),
        # TAESD, TAESD3, TAEF1. Checkpointing in diffusers 0.42 leaves out the encoder's change of range.
        BaseFamily(
            "AutoencoderTiny",
            encode=_latents,
            head=_last_layer,
            stem=_first_layer,
            tail=_last_layer,
            widths="encoder_block_out_channels",
            can_checkpoint=False,
        ),
        # TAEF2, the tiny autoencoder of FLUX.2
        BaseFamily(
            "AutoencoderTAEF2",
            encode=_latents,
            head=_last_layer,
            stem=_first_layer,
            tail=_last_layer,
            widths="encoder_block_out_channels",
            can_checkpoint=False,
            module="davae",
        ),
    )
}


def family_of(class_name: str) -> BaseFamily:
    """The family of a class name; an unknown one is an error that lists the known ones."""
    if class_name not in FAMILIES:
        raise ValueError(
            f"Cannot use {class_name} as a base autoencoder; known families: {', '.join(sorted(FAMILIES))}. "
            f"Add an entry to davae.models.bases for another one."
        )
    return FAMILIES[class_name]


def build_base(class_name: str, config: Mapping[str, Any]) -> ModelMixin:
    """An untrained base autoencoder from its class name and config."""
    family = family_of(class_name)
    return getattr(importlib.import_module(family.module), class_name).from_config(config)
