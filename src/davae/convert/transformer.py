"""What checkpoints of class-conditional transformers share: names, sizes, frozen tables."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from davae.convert.keys import ConversionError, names_of, shape_of
from davae.models.embeddings import sincos_position_table

EQUAL = 1e-5
"""Largest difference of a table from the computed one that counts as rounding."""
DRIFT = 1e-3
"""Largest one of a table inside a running average, which moves even a constant: rounding adds up until 1 - decay
pulls back, to 1.7e-4 at the usual decay of 0.9999."""


@dataclass(frozen=True)
class Sizes:
    """What shapes say of a class-conditional transformer.

    Args:
        hidden_size: width of a token.
        num_layers: blocks.
        patch_size: side of the square of latent positions that makes a token.
        in_channels: of the latent.
        out_channels: of the prediction, with a variance where there is one.
        num_classes: without "no class", the last row of the table.
        grid: tokens a side.
    """

    hidden_size: int
    num_layers: int
    patch_size: int
    in_channels: int
    out_channels: int
    num_classes: int
    grid: int

    def __str__(self) -> str:
        side = self.grid * self.patch_size
        return (
            f"{self.num_layers} layers of width {self.hidden_size}, patch {self.patch_size}, {self.in_channels} "
            f"channels in, {self.out_channels} out, {side} x {side} latent, {self.num_classes} classes"
        )


def transformer_names(keys: Iterable[str]) -> dict[str, str]:
    """See `names_of`."""
    return names_of(keys, lambda name: name.startswith("x_embedder."))


def sizes_of(state: Mapping[str, Tensor]) -> Sizes:
    """The sizes of a transformer with these weights, under their unwrapped names.

    Raises:
        ConversionError: a key that they are read from is missing or of another kind.
    """
    hidden_size, in_channels, patch_size, _ = shape_of(state, "x_embedder.proj.weight")
    _, tokens, _ = _shape(state, "pos_embed", 3)
    rows, _ = _shape(state, "final_layer.linear.weight", 2)
    labels, _ = _shape(state, "y_embedder.embedding_table.weight", 2)
    blocks = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise ConversionError(f"pos_embed has {tokens} positions; expected a square, without tokens of other kinds.")
    return Sizes(
        hidden_size=hidden_size,
        num_layers=max(blocks, default=-1) + 1,
        patch_size=patch_size,
        in_channels=in_channels,
        out_channels=rows // patch_size**2,
        num_classes=labels - 1,
        grid=grid,
    )


def position_difference(state: Mapping[str, Tensor], sizes: Sizes) -> float:
    """Largest difference of `pos_embed` from the computed table; infinite where the shapes differ."""
    return difference(state["pos_embed"], sincos_position_table(sizes.hidden_size, sizes.grid)[None])


def difference(stored: Tensor, computed: Tensor) -> float:
    """max |stored - computed|; infinite for other shapes and for what is no number."""
    if stored.shape != computed.shape:
        return math.inf
    largest = (stored.to(computed) - computed).abs().max().item()
    return math.inf if math.isnan(largest) else largest


def rounding(stored: Tensor, tolerance: float) -> float:
    """`tolerance`, or the rounding of the stored dtype (values up to 1) where that is coarser."""
    return max(tolerance, torch.finfo(stored.dtype).eps) if stored.is_floating_point() else tolerance


def _shape(state: Mapping[str, Tensor], key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise ConversionError(f"The weights lack {key}, which the config is read from. Is the file complete?")
    shape = tuple(state[key].shape)
    if len(shape) != axes:
        raise ConversionError(f"{key} has the shape {list(shape)}; expected {axes} axes.")
    return shape
