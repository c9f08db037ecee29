"""Sets of images that all processes of a run make together and each then sees, on the disk while they are judged.

They are written and not mapped, so that a full disk is an error; they are mapped to be read, so that no process has
to hold them.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from davae.run.run import Run


@dataclass(frozen=True)
class ImageSets:
    """Sets of uint8 images [N, 3, S, S] in a folder, a file each.

    Args:
        folder: that all processes see.
        counts: name -> N.
        size: S, pixels.
    """

    folder: Path
    counts: Mapping[str, int]
    size: int

    def write(self, name: str, first: int, images: Tensor) -> None:
        """Put images [B, 3, S, S] into a set, from number `first` on."""
        with self._path(name).open("r+b") as file:
            file.seek(first * prod(images.shape[1:]))
            file.write(images.contiguous().numpy().tobytes())

    def read(self) -> dict[str, Tensor]:
        """All sets, mapped into memory; all processes have written theirs before."""
        return {name: torch.from_numpy(self._mapped(name, count)) for name, count in self.counts.items()}

    def begin(self) -> None:
        """Make room for them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.counts:
            self._path(name).write_bytes(b"")

    def _mapped(self, name: str, count: int) -> np.ndarray:
        # Copied where it is written to: the file stays as it is, and torch warns of what is read-only.
        return np.memmap(self._path(name), np.uint8, "c", shape=(count, 3, self.size, self.size))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.uint8"


@contextmanager
def image_sets(run: Run, counts: Mapping[str, int]) -> Iterator[ImageSets]:
    """Empty sets of a run's images, gone when the block ends; all processes enter it."""
    sets = ImageSets(run.folder.judged, counts, run.recipe.image_size)
    if run.is_main:
        sets.begin()
    run.accelerator.wait_for_everyone()
    try:
        yield sets
        run.accelerator.wait_for_everyone()
    finally:
        if run.is_main:
            shutil.rmtree(sets.folder, ignore_errors=True)
