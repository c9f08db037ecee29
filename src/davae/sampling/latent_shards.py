"""Drawn latents on disk, a shard a batch of images: images follow from them, and are then never drawn again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from davae.data.cache_files import save_shard


class LatentShards:
    """Latents of images 0 .. N - 1 in half precision.

    Args:
        folder: of the shards.
        units: image numbers of each shard.
    """

    def __init__(self, folder: Path, units: Sequence[Sequence[int]]) -> None:
        self.folder, self.units = folder, units

    def has(self, unit: Sequence[int]) -> bool:
        """Whether the latents of a unit stand."""
        return self._path(unit).exists()

    def load(self, unit: Sequence[int]) -> Tensor:
        """Stored latents of a unit: float32 [B, K, h, w]."""
        return load_file(self._path(unit))["latent"].float()

    def first(self, count: int) -> Iterator[Tensor]:
        """Latents of images 0 .. count - 1, shard by shard."""
        return (self.load(unit)[: count - unit[0]] for unit in self.units if unit[0] < count)

    def save(self, unit: Sequence[int], latents: Tensor) -> Tensor:
        """Keep the latents of a unit; returns them as they can be read again."""
        stored = latents.half().cpu()
        save_shard({"latent": stored}, self._path(unit))
        return stored.float()

    def discard(self, keep: bool) -> None:
        """Remove shards that are none of the units', or all of them."""
        sizes = {self._path(unit): len(unit) for unit in self.units} if keep else {}
        for shard in self.folder.glob("latents-*.safetensors"):
            if shard not in sizes or sizes[shard] != _rows(shard):
                shard.unlink()

    def _path(self, unit: Sequence[int]) -> Path:
        return self.folder / f"latents-{unit[0]:06d}.safetensors"


def _rows(shard: Path) -> int:
    with safe_open(shard, framework="pt") as file:
        rows: int = file.get_slice("latent").get_shape()[0]
    return rows
