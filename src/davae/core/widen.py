"""Warm start as pure functions: weights of a patch embedder and an output head grow by detail channels.

With "zero" the widened layer computes exactly the pretrained one on the base channels, whatever the
detail channels hold. Every tensor of a model is accounted for in a `KeyReport`.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from davae.core.names import Init

INITS: tuple[Init, ...] = ("zero", "random", "repeat")


@dataclass
class KeyReport:
    """What happened to every key: taken over bit for bit, or widened."""

    copied: list[str] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        widened = ", ".join(self.widened)
        return f"{len(self.copied)} copied, {len(self.widened)} widened ({widened})"


def _check_init(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"Unknown initialisation of the new channels; got {init!r}. Allowed: {', '.join(INITS)}.")


def widen_inputs(weight: Tensor, channels: int, init: Init = "zero", seed: int = 0) -> Tensor:
    """Grow the input channels of a conv or linear weight [out, C, ...] to [out, channels, ...], base first.

    Args:
        weight: pretrained weight; dimension 1 is the channel axis.
        channels: C + D.
        init: "zero" (the method), "random" (kaiming uniform on the new columns) or "repeat" (channel index
            modulo C, divided by ceil(channels / C): the reference's repeat_average).
        seed: of the random initialisation.
    """
    _check_init(init)
    base = weight.shape[1]
    if channels < base:
        raise ValueError(f"Widening cannot remove channels; got {base} -> {channels}.")
    if init == "repeat":
        return weight[:, torch.arange(channels) % base] / math.ceil(channels / base)
    wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    wide[:, :base] = weight
    if init == "random" and channels > base:
        wide[:, base:] = _uniform(
            wide[:, base:], fan_in=(channels - base) * weight[0, 0].numel(), gain=1.0, seed=seed
        )
    return wide


def widen_outputs(tensor: Tensor, channels: int, init: Init = "zero", groups: int = 1, seed: int = 0) -> Tensor:
    """Grow the rows of an output head (weight [groups * C, in] or bias [groups * C]), base first in each group.

    Args:
        tensor: rows in the order (group, channel), channel innermost. `groups` counts what stands outside the
            channels: p * p patch positions, times 2 where the head also predicts a variance.
        channels: C + D.
        init: "zero", "random" (uniform of +-1/sqrt(fan in)) or "repeat" (channel index modulo C).
        groups: see `tensor`.
        seed: of the random initialisation.
    """
    _check_init(init)
    if tensor.shape[0] % groups:
        raise ValueError(
            f"An output head of {tensor.shape[0]} rows cannot be split into {groups} groups of channels."
        )
    rows = torch.unflatten(tensor, 0, (groups, -1))
    base = rows.shape[1]
    if channels < base:
        raise ValueError(f"Widening cannot remove channels; got {base} -> {channels}.")
    if init == "repeat":
        return rows[:, torch.arange(channels) % base].flatten(0, 1)
    wide = rows.new_zeros(groups, channels, *rows.shape[2:])
    wide[:, :base] = rows
    if init == "random" and channels > base and tensor.ndim > 1:
        wide[:, base:] = _uniform(wide[:, base:], fan_in=tensor.shape[1], gain=1 / math.sqrt(3), seed=seed)
    return wide.flatten(0, 1)


def grow_patch(weight: Tensor, patch_size: int) -> Tensor:
    """Grow a 1x1 patch embedder [out, C, 1, 1] to k x k, the old weight at (k // 2, k // 2), zeros around it."""
    if weight.ndim != 4 or weight.shape[-2:] != (1, 1):
        raise ValueError(f"Patch growth starts from a 1x1 embedder; got a weight of shape {tuple(weight.shape)}.")
    wide = weight.new_zeros(*weight.shape[:2], patch_size, patch_size)
    wide[:, :, patch_size // 2, patch_size // 2] = weight[:, :, 0, 0]
    return wide


def _uniform(like: Tensor, fan_in: int, gain: float, seed: int) -> Tensor:
    """Uniform numbers in +-gain * sqrt(3 / fan_in), drawn on the CPU so that every device gets the same."""
    bound = gain * math.sqrt(3 / fan_in)
    numbers = torch.rand(like.shape, generator=torch.Generator().manual_seed(seed))
    return ((2 * numbers - 1) * bound).to(like)
