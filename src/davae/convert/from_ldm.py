"""Latent-diffusion autoencoders (SD, SDXL, SD3, FLUX.1, VA-VAE) -> diffusers' `AutoencoderKL`.

The layout is that of CompVis/latent-diffusion: `encoder.down.I.block.J`, decoder levels counted from the finest.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from davae.convert.keys import Arguments, ConversionReport, fit, foreign, names_of, sort_keys
from davae.convert.kl import NORM_GROUPS, kl_config, scaling_config, scaling_note
from davae.convert.unpickle import Statistics

KIND = "ldm"
EXTRAS = {
    "loss.": "loss of its training",
    "model_ema.": "running average of its training",
    "foundation_model.": "vision model of VA-VAE's training",
    "linear_proj.": "projection of VA-VAE's training",
}
"""Prefixes of what trainings leave beside the autoencoder."""

_RENAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", r".mid_block.attentions.0."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are of this layout, wrapped or not, with or without the rest of an SD checkpoint."""
    return any(map(_marks, names_of(keys, _marks).values()))


def convert_ldm(
    state: Mapping[str, Tensor],
    statistics: Statistics | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    norm_num_groups: int = NORM_GROUPS,
) -> tuple[AutoencoderKL, ConversionReport]:
    """An `AutoencoderKL` with these weights; its config is read from their shapes.

    Args:
        state: the checkpoint, or a whole SD checkpoint with the autoencoder inside.
        statistics: mean and deviation of every latent channel, as VA-VAE's `latents_stats.pt` has them.
        scaling_factor: the scalar alternative.
        shift_factor: the scalar alternative.
        norm_num_groups: cannot be read from weights.

    Raises:
        ConversionError: keys are missing, unexpected or misshapen, or the statistics do not fit.
    """
    inside = names_of(state, _marks)
    others = foreign(state, inside)
    names, dropped = sort_keys(inside, EXTRAS, places={})
    levels = _count_levels(names.values())
    names = {key: rename(name, levels) for key, name in names.items()}
    state = {key: as_linear(name, state[key]) for key, name in names.items()}
    config = kl_config({name: state[key] for key, name in names.items()}, norm_num_groups)
    config |= scaling_config(config["latent_channels"], statistics, scaling_factor, shift_factor)
    with torch.device("meta"):
        model = AutoencoderKL(**config)
    return fit(KIND, model, state, names, others | dropped, [_read_from(config), scaling_note(config)])


def rename(key: str, levels: int) -> str:
    """The diffusers name of an LDM key; `levels` as in the decoder, whose order is reversed."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", key)


def as_linear(name: str, tensor: Tensor) -> Tensor:
    """A 1x1 convolution of an attention, [out, in, 1, 1], as the linear layer that diffusers has, [out, in]."""
    is_projection = re.search(r"\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight$", name)
    return tensor.flatten(1) if is_projection and tensor.shape[2:] == (1, 1) else tensor


def _marks(name: str) -> bool:
    return name.startswith("encoder.down.")


def _count_levels(names: Iterable[str]) -> int:
    found = (re.search(r"encoder\.down\.(\d+)\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _read_from(config: Arguments) -> str:
    widths, channels, groups = (config[key] for key in ("block_out_channels", "latent_channels", "norm_num_groups"))
    read = f"f{2 ** (len(widths) - 1)}, {channels} latent channels, widths {widths}"
    return f"read from shapes: {read}; not from shapes: {groups} norm groups"
