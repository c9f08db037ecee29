"""A start for the two new blocks from the base's own head and stem, instead of from random weights.

Ours, not the method's. The base autoencoder run at full resolution has s^2 latent positions where the structured
latent has one. The down block is set to write as many channels of that latent as D holds, each as its s^2 phases; the
up block is set to read every channel from there, or from the base latent where there was no room. With D = s^2 C the
start is the base autoencoder at full resolution itself.
"""

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from davae.models.blocks import DetailDownBlock, DetailUpBlock

if TYPE_CHECKING:
    from davae.models.autoencoder import AutoencoderDA

QUIET_LOGVAR = -6.0
"""Log-variance at the start: a posterior that adds little noise (standard deviation 0.05)."""


@torch.no_grad()
def warm_start(model: "AutoencoderDA") -> None:
    """Set the weights of an `AutoencoderDA`'s two new blocks in place, from those of its `base_vae`.

    Raises:
        ValueError: the model's decoder takes its latent in another order or other units than the base, the base has
            quant convs between its latent and its head or stem, or D is not a multiple of s^2.
    """
    config, family, base_vae = model.config, model.family, model.base_vae
    if config.decoder_order != "base_first" or config.base_units != "raw":
        raise ValueError(
            f"A warm start needs a decoder that takes the raw base first; got decoder_order "
            f"{config.decoder_order!r} and base_units {config.base_units!r}. Use the defaults."
        )
    area = config.scale**2
    if any(base_vae.config.get(name) for name in ("use_quant_conv", "use_post_quant_conv")):
        raise ValueError(
            f"A warm start needs a base whose head and stem are one convolution each; this {family.class_name} has "
            f"quant convs beside them. Start without."
        )
    if model.layout.detail_channels % area:
        raise ValueError(
            f"A warm start writes whole channels of the base's latent, {area} detail channels each at scale "
            f"{config.scale}; got {model.layout.detail_channels}. Take a multiple of {area}, or start without."
        )
    down, up = family.head_of(model.encoder), family.stem_of(model.decoder)
    assert isinstance(down, DetailDownBlock)
    assert isinstance(up, DetailUpBlock)
    _set_blocks(down, up, family.folded_head(base_vae.encoder), family.folded_stem(base_vae.decoder))


def _set_blocks(
    down: DetailDownBlock, up: DetailUpBlock, head: tuple[Tensor, Tensor], stem: tuple[Tensor, Tensor]
) -> None:
    """Weight and bias of head and stem -> weights of the two blocks."""
    area, base_channels = down.factor**2, stem[0].shape[1]
    rows = down.conv.out_channels // 2  # channels whose phases are means; the other half makes log-variances
    written = [row * base_channels // rows for row in range(rows)] if rows < base_channels else range(base_channels)
    weight, bias = down.conv.weight, down.conv.get_parameter("bias")
    weight.zero_()
    bias.zero_()
    for row, channel in enumerate(written):
        weight[row] = head[0][channel]
        bias[row] = head[1][channel]
    bias[rows:] = QUIET_LOGVAR

    place = {channel: base_channels + area * row for row, channel in enumerate(written)}
    up.conv.weight.copy_(_read_phases(stem[0], place, up))
    up.conv.get_parameter("bias").copy_(stem[1].repeat_interleave(area))


def _read_phases(stem: Tensor, place: dict[int, int], up: DetailUpBlock) -> Tensor:
    """The stem [F, C, 3, 3] on the full grid as a convolution [F s^2, C + D, 3, 3] on the latent's grid.

    Args:
        stem: weight of the base decoder's first convolution.
        place: channel -> where its phases begin in the joint latent; one that is not there is read from the base.
        up: the block the weight is for; its parameter-free shortcut is taken off.
    """
    factor, area = up.factor, up.factor**2
    weight = torch.zeros_like(up.conv.weight)
    for dy, dx, ky, kx in product(range(factor), range(factor), range(3), range(3)):
        (oy, py), (ox, px) = divmod(dy + ky - 1, factor), divmod(dx + kx - 1, factor)
        for channel in range(stem.shape[1]):
            source = place[channel] + factor * py + px if channel in place else channel
            weight[factor * dy + dx :: area, source, oy + 1, ox + 1] += stem[:, channel, ky, kx]
    if up.shortcut_proj is None:
        outputs = torch.arange(weight.shape[0])
        weight[outputs, outputs // up.repeats, 1, 1] -= 1
    return weight
