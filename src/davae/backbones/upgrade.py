"""`davae.upgrade`: the same pipeline class over an upgraded autoencoder and a widened transformer."""

import logging
from typing import Any

from torch import nn

from davae.backbones.base import Backbone, config_of
from davae.backbones.registry import backbone_of
from davae.backbones.widening import widen
from davae.core.names import Init
from davae.models.autoencoder import AutoencoderDA, expect_upgrade
from davae.models.instead import instead_of, is_pipeline, is_upgraded
from davae.models.plain import expect_plain

_WIDENED = ("transformer", "controlnet")

logger = logging.getLogger(__name__)


def upgrade(
    pipe: Any,
    scale: int = 2,
    image_size: int | None = None,
    detail_channels: int | None = None,
    init: Init = "zero",
) -> Any:
    """A pipeline of the same class whose images have `scale` times the side on the same tokens.

    The autoencoder becomes an (untrained) `AutoencoderDA`, the transformer is widened, and so is a ControlNet; the
    other parts are shared with `pipe`. Train the autoencoder and fine-tune the transformer before you draw.
    Hunyuan-DiT needs a pipeline class of its own and gets it.

    Args:
        pipe: a diffusers pipeline with a `vae` and a `transformer` of known families.
        scale: s, 2 or 4.
        image_size: default side of the images, pixels; None keeps the token grid of `pipe`'s default size.
        detail_channels: D; None takes the base's number of channels.
        init: of the new weights, see `widen`.

    Raises:
        ValueError: it is no pipeline, or upgraded already; a family is unknown, the pipeline cannot draw an upgraded
            model, weights are not plain (see `expect_plain`), the parts do not match, or a setting does not fit.
    """
    backbone = _backbone_of(pipe)  # a pipeline that cannot be upgraded is refused before anything is copied
    expect_upgrade(scale, detail_channels)
    if image_size is not None and type(image_size) is not int:
        raise ValueError(
            f"image_size is a whole number of pixels; got {image_size!r}. Pass a number, or leave it out."
        )
    vae = AutoencoderDA.from_base(pipe.vae, scale=scale, detail_channels=detail_channels)
    components = {**pipe.components, "vae": vae}
    for name in _WIDENED:
        if components.get(name) is not None:
            _expect_pair(pipe.vae, vae, components[name])
            components[name] = widen(components[name], vae.layout.detail_channels, init)
    if image_size is not None:
        size = _sample_size(vae, backbone, pipe.transformer.config, image_size)
        components["transformer"].register_to_config(sample_size=size)
    upgraded = backbone.rebuild(pipe, components)
    if backbone.call_with:
        arguments = ", ".join(f"{name}={value}" for name, value in backbone.call_with.items())
        logger.warning(
            "Call the upgraded %s with %s: by default it draws a smaller image and enlarges it.",
            type(upgraded).__name__,
            arguments,
        )
    return upgraded


def _backbone_of(pipe: Any) -> Backbone:
    name = type(pipe).__name__
    if not is_pipeline(pipe) or is_upgraded(pipe.components.get("vae")):
        raise ValueError(f"davae.upgrade takes a pretrained pipeline of diffusers; {instead_of(pipe)}")
    present = sorted(part for part, component in pipe.components.items() if component is not None)
    if not {"vae", "transformer"} <= set(present):
        remedy = (
            "U-Nets are not upgraded; take a pipeline with a diffusion transformer."
            if "unet" in present
            else "Load the pipeline with both, or use davae.widen and davae.AutoencoderDA.from_base on the parts."
        )
        raise ValueError(
            f"Cannot upgrade a {name}: it has no vae or no transformer; got {', '.join(present)}. {remedy}"
        )
    for part in ("vae", *_WIDENED):
        if part in present:
            expect_plain(pipe.components[part], "upgrade")
    backbone = backbone_of(pipe.transformer)
    if name in backbone.refused:
        raise ValueError(
            f"Cannot upgrade a {name}: {backbone.refused[name]}. Upgrade the text-to-image pipeline of the same "
            f"parts; image-to-image takes the upgraded parts."
        )
    return backbone


def _expect_pair(base_vae: object, vae: AutoencoderDA, model: nn.Module) -> None:
    taken = backbone_of(model).latent_channels(config_of(model))
    if taken != vae.layout.base_channels:
        raise ValueError(
            f"The autoencoder and the transformer are not a pair: {type(base_vae).__name__} has "
            f"{vae.layout.base_channels} latent channels, {type(model).__name__} takes {taken}. "
            f"Pass a pipeline whose parts were trained together."
        )


def _sample_size(vae: AutoencoderDA, backbone: Backbone, config: Any, image_size: int) -> int:
    if backbone.default_size == "asked":
        raise ValueError(
            f"A {backbone.class_name} keeps no default size that can be changed; got image_size {image_size}. "
            f"Leave it out, and call the pipeline with height={image_size}, width={image_size}."
        )
    token_side = backbone.token_side(config)
    unit = vae.compression * token_side
    if image_size < unit or image_size % unit:
        raise ValueError(
            f"image_size must be a multiple of {unit} (compression {vae.compression} x patch {token_side}); "
            f"got {image_size}. Use {max(image_size // unit, 1) * unit}."
        )
    size = image_size // vae.compression
    if backbone.default_size == "fixed" and size != config.sample_size:
        raise ValueError(
            f"A {backbone.class_name} draws one size only; got image_size {image_size}, allowed "
            f"{config.sample_size * vae.compression}. Leave image_size out."
        )
    return size
