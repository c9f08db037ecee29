"""What an upgraded autoencoder takes over from its base: trunk weights and latent statistics."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from davae.core.scaling import LatentScaling


def constructor_arguments(base_vae: ModelMixin) -> dict[str, Any]:
    """The config of an autoencoder without entries that its class derives itself (AutoencoderTiny has one)."""
    known = inspect.signature(type(base_vae).__init__).parameters
    return {key: value for key, value in base_vae.config.items() if key in known}


def load_trunk(target: nn.Module, source: nn.Module, replaced: str) -> None:
    """Copy the weights of `source`, all but those of the replaced submodule.

    Raises:
        ValueError: the others are not the same in both.
    """
    prefix = f"{replaced}."
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith(prefix)}
    missing, unexpected = target.load_state_dict(weights, strict=False)
    offending = [key for key in missing if not key.startswith(prefix)] + list(unexpected)
    if offending:
        raise ValueError(f"The base autoencoder's weights do not fit its class; offending keys: {offending}.")


def inherited_scaling(base_config: Mapping[str, Any], detail_channels: int) -> dict[str, Any]:
    """Config entries of the latent statistics: the base's, extended by mean 0 and deviation 1 for the detail.

    Args:
        base_config: of the base autoencoder.
        detail_channels: D.
    """
    mean, std = base_config.get("latents_mean"), base_config.get("latents_std")
    return {
        "scaling_factor": base_config.get("scaling_factor"),
        "shift_factor": base_config.get("shift_factor"),
        "latents_mean": None if mean is None else list(mean) + [0.0] * detail_channels,
        "latents_std": None if std is None else list(std) + [1.0] * detail_channels,
        "batch_norm_eps": base_config.get("batch_norm_eps"),
        "patch_size": base_config.get("patch_size"),
    }


def detail_affine(
    declared: LatentScaling, detail_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """(shift, scale) with stored = (raw - shift) * scale, so that the pair's formula gives the detail mean 0, std 1.

    Where that formula is (stored - b) * a, it must give (raw - mean) / std.

    Args:
        declared: the scaling of the upgraded autoencoder, of C + D channels.
        detail_channels: D.
        mean: raw, of each detail channel; None is 0.
        std: raw, of each detail channel; None is 1.

    Returns:
        Two tensors [D], float32.
    """
    step = declared.patch**2  # the positions of a patch are all alike in the detail
    first = len(declared.scale) - detail_channels * step
    a, b = torch.tensor(declared.scale[first::step]), torch.tensor(declared.shift[first::step])
    means = torch.zeros_like(a) if mean is None else torch.tensor(mean)
    scale = 1 / ((torch.ones_like(a) if std is None else torch.tensor(std)) * a)
    return means - b / scale, scale


def extended_norm(base_vae: ModelMixin, detail_channels: int) -> nn.BatchNorm2d:
    """FLUX.2's batch norm over packed latents for C + D channels: the base's entries, then mean 0, deviation 1."""
    base: nn.BatchNorm2d = base_vae.bn
    width = base.num_features + math.prod(base_vae.config["patch_size"]) * detail_channels
    norm = nn.BatchNorm2d(width, eps=base.eps, momentum=base.momentum, affine=False)
    for name, value in (("running_mean", 0.0), ("running_var", 1 - base.eps)):  # the pipeline adds eps
        statistics = norm.get_buffer(name).fill_(value)
        statistics[: base.num_features] = base.get_buffer(name)
    return norm.eval()
