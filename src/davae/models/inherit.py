"""What an upgraded autoencoder takes over from its base: trunk weights and latent statistics."""

import inspect
import math
from typing import Any

from torch import nn


def constructor_arguments(base_vae: Any) -> dict[str, Any]:
    """The config of an autoencoder without entries that its class derives itself (AutoencoderTiny has one)."""
    known = inspect.signature(type(base_vae).__init__).parameters
    return {key: value for key, value in base_vae.config.items() if key in known}


def load_trunk(target: nn.Module, source: nn.Module, replaced: str) -> None:
    """Copy the weights of `source`, all but those of the replaced submodule."""
    own = f"{replaced}."
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith(own)}
    missing, unexpected = target.load_state_dict(weights, strict=False)
    strangers = [key for key in missing if not key.startswith(own)] + list(unexpected)
    if strangers:
        raise ValueError(f"The base autoencoder's weights do not fit its own class; offending keys: {strangers}.")


def inherited_scaling(base: Any, detail_channels: int) -> dict[str, Any]:
    """Config entries of the latent statistics: the base's, extended by mean 0 and deviation 1 for the detail.

    Args:
        base: config of the base autoencoder.
        detail_channels: D.
    """
    mean, std = base.get("latents_mean"), base.get("latents_std")
    return {
        "scaling_factor": base.get("scaling_factor"),
        "shift_factor": base.get("shift_factor"),
        "latents_mean": None if mean is None else list(mean) + [0.0] * detail_channels,
        "latents_std": None if std is None else list(std) + [1.0] * detail_channels,
        "batch_norm_eps": base.get("batch_norm_eps"),
        "patch_size": base.get("patch_size"),
    }


def extended_norm(base_vae: Any, detail_channels: int) -> nn.BatchNorm2d:
    """FLUX.2's batch norm over packed latents for C + D channels: the base's entries, then mean 0, deviation 1."""
    base, phases = base_vae.bn, math.prod(base_vae.config.patch_size)
    width = base.num_features + phases * detail_channels
    norm = nn.BatchNorm2d(width, eps=base.eps, momentum=base.momentum, affine=False)
    norm.running_var.fill_(1 - base.eps)  # the pipeline adds eps
    norm.running_mean[: base.num_features] = base.running_mean
    norm.running_var[: base.num_features] = base.running_var
    return norm.eval()
