"""ncnn's pair of files, NAME.param and NAME.bin, as Real-ESRGAN's desktop programs carry them: weights in order.

The text file lists layers; the other one holds their weights without names, in the same order.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davae.convert.keys import ConversionError

_MAGIC: Final = "7767517"
_HALF: Final = 0x01306B47
"""Stands before weights in 16 bit; 0 stands before those in 32."""
_WITHOUT_WEIGHTS: Final = frozenset(
    ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle", "Reorg", "ReLU", "Crop")
)


@dataclass(frozen=True)
class Layer:
    """A layer with weights: a convolution's weight [out, in, k, k] and bias [out], or a PReLU's slopes [channels]."""

    kind: str
    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Graph:
    """What the files hold.

    Args:
        layers: those with weights, in order.
        kinds: of every layer, in order.
    """

    layers: tuple[Layer, ...]
    kinds: tuple[str, ...]


def read_ncnn(path: Path) -> Graph:
    """Read NAME.param and, beside it, NAME.bin.

    Raises:
        ConversionError: a file is missing or damaged, or a layer is of a kind that is not known here.
    """
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise ConversionError(f"There is no file {file}. ncnn's weights are two files, NAME.param and NAME.bin.")
    lines = path.read_bytes().decode("ascii", errors="replace").split("\n")
    if lines[0].strip() != _MAGIC:
        raise ConversionError(f"{path} is no text of ncnn's layers: it begins with {lines[0][:20]!r}, not {_MAGIC}.")
    reader = _Reader(weights)
    rows = [line.split() for line in lines[2:] if line.strip()]
    if any(len(row) < 4 for row in rows):
        raise ConversionError(f"{path} is damaged: a layer's line has fewer than four words. Download it again.")
    layers = tuple(layer for row in rows if (layer := _layer(path, row, reader)) is not None)
    reader.finish()
    return Graph(layers, tuple(row[0] for row in rows))


def _layer(path: Path, row: list[str], reader: "_Reader") -> Layer | None:
    kind, name = row[:2]
    if kind in _WITHOUT_WEIGHTS:
        return None
    try:
        settings = dict(word.split("=", 1) for word in row if "=" in word)
        if kind == "Convolution":
            outputs, side, count = (int(settings[key]) for key in ("0", "1", "6"))
            weight = reader.tagged(count).view(outputs, -1, side, side)
            return Layer(kind, weight, reader.plain(outputs) if settings.get("5") == "1" else None)
        if kind == "PReLU":
            return Layer(kind, reader.plain(int(settings["0"])))
    except (KeyError, ValueError, RuntimeError) as error:
        raise ConversionError(f"{path}: the line of layer {name} cannot be read ({error}).") from None
    raise ConversionError(
        f"{path}: layer {name} is a {kind}; allowed are Convolution and PReLU, and what has no weights."
    )


class _Reader:
    """Weights one after the other."""

    def __init__(self, path: Path) -> None:
        self._path, self._bytes, self._at = path, path.read_bytes(), 0

    def tagged(self, count: int) -> Tensor:
        """Numbers after a mark that says how they are stored."""
        mark = int(self._take("<u4", 1)[0])
        if mark not in (0, _HALF):
            raise ConversionError(
                f"{self._path}: byte {self._at - 4} marks weights as {mark:#x}; allowed are 0 (32 bit) and "
                f"{_HALF:#x} (16 bit). Quantised weights are not read."
            )
        if mark == 0:
            return self.plain(count)
        values = torch.from_numpy(self._take("<f2", count).astype(np.float32))
        self._at += -self._at % 4
        return values

    def plain(self, count: int) -> Tensor:
        """Numbers of 32 bit."""
        return torch.from_numpy(self._take("<f4", count).copy())

    def finish(self) -> None:
        """Refuse a file that holds more."""
        if self._at != len(self._bytes):
            raise ConversionError(f"{self._path} holds {len(self._bytes)} bytes, its layers take {self._at}.")

    def _take(self, kind: str, count: int) -> NDArray:
        size = np.dtype(kind).itemsize * count
        if count < 0 or self._at + size > len(self._bytes):
            raise ConversionError(f"{self._path} is cut off: it ends at byte {len(self._bytes)}. Download it again.")
        self._at += size
        return np.frombuffer(self._bytes, kind, count, self._at - size)
