"""What the authors' two layouts of a structured autoencoder share: its geometry and its statistics."""

import math

import torch

from davae.convert.keys import Arguments, ConversionError
from davae.convert.unpickle import Statistics
from davae.models.autoencoder import AutoencoderDA


def geometry(down: tuple[int, ...], up: tuple[int, ...], base_config: Arguments) -> tuple[int, int]:
    """(scale s, detail channels D), read from the convolutions of the two detail blocks.

    Args:
        down: shape of the down block's convolution, [2 D / s^2, width, 3, 3].
        up: shape of the up block's convolution, [s^2 width, C + D, 3, 3].
        base_config: config of the base autoencoder, which knows C and the width.

    Raises:
        ConversionError: the blocks are those of a model without a base latent, or of no known variant.
    """
    width, base_channels = base_config["block_out_channels"][-1], base_config["latent_channels"]
    scale, joint = math.isqrt(up[0] // width), up[1]
    moments, detail = scale**2 * down[0], joint - base_channels
    if up[0] == scale**2 * width and detail > 0 and moments == 2 * detail:
        return scale, detail
    shapes = f"down block {list(down)}, up block {list(up)}, {base_channels} base channels, width {width}"
    if moments == 2 * joint:
        raise ConversionError(
            f"This checkpoint was trained with 'da_mode: full': its encoder makes all {joint} latent channels by "
            f"itself, none of them is the base's, and a pretrained transformer cannot start from it ({shapes}). "
            f"Use a checkpoint trained with 'da_mode: diff' (text to image) or 'detail' (ImageNet)."
        )
    raise ConversionError(
        f"The detail blocks fit no known variant: {shapes}. Expected a down block of 2 D / s^2 and an up block of "
        f"s^2 x width output channels."
    )


def build(base_config: Arguments, scale: int, detail_channels: int, conventions: Arguments) -> AutoencoderDA:
    """A structured autoencoder without weights, on the meta device.

    Args:
        base_config: of its base `AutoencoderKL`.
        scale: s.
        detail_channels: D.
        conventions: what a branch fixes: `clamp_base_image`, `base_units`, `decoder_order`.
    """
    with torch.device("meta"):
        return AutoencoderDA(
            base_class="AutoencoderKL",
            base_config=base_config,
            scale=scale,
            detail_channels=detail_channels,
            **conventions,
        )


def calibrate(model: AutoencoderDA, statistics: Statistics | None) -> str:
    """Store the statistics of the raw detail channels in the model, where they are given; returns a note."""
    channels = model.layout.detail_channels
    if statistics is None:
        return f"{channels} detail channels: not calibrated, no statistics were given; encode will warn"
    if len(statistics.mean) != channels:
        raise ConversionError(
            f"The statistics are of {len(statistics.mean)} channels, the checkpoint has {channels} detail channels."
        )
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (statistics.mean, statistics.std))
    model.calibrate(mean, std)
    return f"{channels} detail channels: calibrated"
