"""Drawn latents on disk, a shard a batch of images: images follow from them, and are then never drawn again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from davae.core.finite import bad_rows
from davae.core.tensor_files import is_whole, load_tensors
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
        """Whether the latents of a unit stand, whole."""
        return is_whole(self._path(unit))

    def load(self, unit: Sequence[int]) -> Tensor:
        """Stored latents of a unit: float32 [B, K, h, w]."""
        return load_tensors(self._path(unit))["latent"].float()

    def first(self, count: int) -> Iterator[Tensor]:
        """Latents of images 0 .. count - 1, shard by shard."""
        return (self.load(unit)[: count - unit[0]] for unit in self.units if unit[0] < count)

    def save(self, unit: Sequence[int], latents: Tensor) -> Tensor:
        """Keep the latents of a unit; returns them as they can be read again.

        Raises:
            FloatingPointError: those of an image are not finite in half precision.
        """
        stored = latents.half().cpu()
        if rows := bad_rows({"latent": stored}):
            raise FloatingPointError(
                f"Drawing failed: the latent of image {unit[rows[0]]} is not finite ({len(rows)} of {len(unit)} in "
                f"its batch). Nothing of the batch was kept. Look at the training's curves; lower the guidance scale."
            )
        save_shard({"latent": stored}, self._path(unit))
        return stored.float()

    def discard(self, keep: bool) -> None:
        """Remove shards that are none of the units', or all of them."""
        sizes = {self._path(unit): len(unit) for unit in self.units} if keep else {}
        for shard in self.folder.glob("latents-*.safetensors"):
            if shard not in sizes or not is_whole(shard) or sizes[shard] != _rows(shard):
                shard.unlink()

    def _path(self, unit: Sequence[int]) -> Path:
        return self.folder / f"latents-{unit[0]:06d}.safetensors"


def _rows(shard: Path) -> int:
    with safe_open(shard, framework="pt") as file:
        rows: int = file.get_slice("latent").get_shape()[0]
    return rows
