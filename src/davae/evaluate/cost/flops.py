"""FLOPs of what runs: 2 a multiply-add of matrix products, convolutions and attention; the rest is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Flops:
    """Of one image, or of whatever is said beside it."""

    forward: int
    backward: int = 0
    """With what gradient checkpointing computes again."""

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)


def flop_counter() -> FlopCounterMode:
    """Counts what happens inside of it, with the right number for convolutions with groups."""
    return FlopCounterMode(display=False, custom_mapping=_CORRECTED)


def _convolution_backward(
    grad_shape: Sequence[int],
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: int,
    output_mask: Sequence[bool],
    **_: object,
) -> int:
    """As many as forward for each gradient asked for. torch's own count is wrong for convolutions with groups."""
    positions = input_shape if transposed else grad_shape
    return 2 * prod(positions) * prod(weight_shape[1:]) * sum(output_mask[:2])


_CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}
