"""What the weights of an `AutoencoderKL` say about its config."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from davae.convert.keys import Arguments, ConversionError, shape_of
from davae.convert.unpickle import Statistics

NORM_GROUPS = 32
"""Groups of every group norm; no weight shows them, and every public model has 32."""


def kl_config(state: Mapping[str, Tensor], norm_num_groups: int = NORM_GROUPS) -> Arguments:
    """Constructor arguments of the `AutoencoderKL` that has these weights, all but the latent statistics.

    Args:
        state: weights under diffusers' names.
        norm_num_groups: cannot be read from weights.
    """
    levels = _count(state, "encoder.down_blocks.")
    widths = [shape_of(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)]
    if any(width % norm_num_groups for width in widths):
        raise ConversionError(
            f"Group norms of {norm_num_groups} groups do not divide the widths {widths}, and weights do not show "
            f"how many there are. Pass norm_num_groups."
        )
    return {
        "in_channels": shape_of(state, "encoder.conv_in.weight")[1],
        "out_channels": shape_of(state, "decoder.conv_out.weight")[0],
        "latent_channels": shape_of(state, "encoder.conv_out.weight")[0] // 2,
        "block_out_channels": widths,
        "layers_per_block": _count(state, "encoder.down_blocks.0.resnets."),
        "down_block_types": [
            "AttnDownEncoderBlock2D" if _attends(state, f"encoder.down_blocks.{i}") else "DownEncoderBlock2D"
            for i in range(levels)
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if _attends(state, f"decoder.up_blocks.{i}") else "UpDecoderBlock2D"
            for i in range(levels)
        ],
        "mid_block_add_attention": _attends(state, "encoder.mid_block"),
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "norm_num_groups": norm_num_groups,
        "sample_size": 512,  # the side of diffusers' tiles, nothing else
    }


def scaling_config(
    channels: int,
    statistics: Statistics | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> Arguments:
    """Config entries of the latent scaling, from statistics a channel or from scalars.

    Where neither is given the scaling stays undeclared (null). diffusers' own default, 0.18215, is right for SD 1
    and wrong for SDXL, whose weights look the same: a missing factor stops, a wrong one draws bad images.
    """
    if shift_factor is not None and scaling_factor is None:
        raise ConversionError("A shift factor needs a scaling factor; got the shift alone.")
    scalars: Arguments = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
    if statistics is None:
        return scalars
    if scaling_factor is not None:
        raise ConversionError("Give the latent statistics or the scaling factor, not both.")
    if len(statistics.mean) != channels:
        raise ConversionError(f"The statistics are of {len(statistics.mean)} channels, the latent has {channels}.")
    return scalars | {"latents_mean": list(statistics.mean), "latents_std": list(statistics.std)}


def scaling_note(config: Mapping[str, Any]) -> str:
    """One line of where the latent scaling of an `AutoencoderKL` comes from."""
    mean, factor = config.get("latents_mean"), config.get("scaling_factor")
    if mean is not None:
        return f"latent scaling: latents_mean and latents_std of {len(mean)} channels"
    if factor is not None:
        return f"latent scaling: factor {factor}, shift {config.get('shift_factor') or 0}"
    return (
        "latent scaling: undeclared, weights do not show it; what draws with this autoencoder will stop. Convert "
        "again with latent statistics (VA-VAE) or a scaling factor (0.18215 for SD 1 and 2, 0.13025 for SDXL)"
    )


def _attends(state: Mapping[str, Tensor], block: str) -> bool:
    return f"{block}.attentions.0.to_q.weight" in state


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules the list has whose keys begin with `prefix` and an index."""
    indices = {int(key.removeprefix(prefix).partition(".")[0]) for key in state if key.startswith(prefix)}
    if not indices:
        raise ConversionError(f"The weights lack {prefix}*, which the config is read from. Is the file complete?")
    return max(indices) + 1
