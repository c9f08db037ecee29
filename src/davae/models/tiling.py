"""Overlapping tiles: run a network over a large map piece by piece and blend the seams linearly."""

from collections.abc import Callable

import torch
from torch import Tensor


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of tiles that cover `length`; the last one is moved back so that it is whole."""
    if length <= tile:
        return [0]
    stride = tile - overlap
    return [*range(0, length - tile, stride), length - tile]


def run_tiled(function: Callable[[Tensor], Tensor], inputs: Tensor, tile: int, overlap: int) -> Tensor:
    """function(inputs) by tiles: inputs [B, K, H, W], tiles of `tile` positions sharing `overlap` with a neighbour.

    Args:
        function: maps [B, K, h, w] to [B, L, h * r, w * r]; the ratio r is read off the first tile.
        inputs: the whole map.
        tile: side of a tile, in positions of `inputs`.
        overlap: positions that neighbours share; the blend runs linearly over them.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"Tiles of {tile} positions cannot overlap by {overlap}; use 0 <= overlap < tile.")
    height, width = inputs.shape[-2:]
    total: Tensor | None = None
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            piece = function(inputs[..., top : top + tile, left : left + tile])
            ratio = piece.shape[-1] / min(tile, width)
            size, start = _scaled(height, width, ratio=ratio), _scaled(top, left, ratio=ratio)
            if total is None:
                total = piece.new_zeros(*piece.shape[:2], *size)
                weight = piece.new_zeros(*size)
            ramp = round(overlap * ratio)
            window = torch.outer(
                _window(piece.shape[-2], ramp, start[0] > 0, start[0] + piece.shape[-2] < size[0]),
                _window(piece.shape[-1], ramp, start[1] > 0, start[1] + piece.shape[-1] < size[1]),
            ).to(piece)
            area = (..., slice(start[0], start[0] + piece.shape[-2]), slice(start[1], start[1] + piece.shape[-1]))
            total[area] += piece * window
            weight[area] += window
    assert total is not None
    return total.div_(weight)


def _scaled(*values: int, ratio: float) -> tuple[int, ...]:
    return tuple(round(value * ratio) for value in values)


def _window(length: int, ramp: int, fade_in: bool, fade_out: bool) -> Tensor:
    window = torch.ones(length)
    slope = (torch.arange(ramp) + 0.5) / max(ramp, 1)
    if fade_in and ramp:
        window[:ramp] = slope
    if fade_out and ramp:
        window[-ramp:] = torch.minimum(window[-ramp:], slope.flip(0))
    return window
