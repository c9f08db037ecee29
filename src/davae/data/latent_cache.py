"""The latent cache: raw moments in safetensors shards, a manifest beside them, everything by sample id.

What is stored is what the encoder said (base mode; detail mean and log-variance), so that normalisation and
the posterior draw happen at load and a change of either never means encoding again. Images of several sizes are
stored bucket by bucket; a shard holds one size.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from davae.core.files import text_hash
from davae.core.layout import LatentLayout
from davae.core.scaling import LatentScaling
from davae.data.cache_files import WHOLE, CacheKind, Part, Shard
from davae.data.errors import DataError

FORMAT_VERSION = 3
_KIND = CacheKind(
    name="latent",
    command="davae cache RECIPE",
    formats=(1, 2, FORMAT_VERSION),  # 1 knows neither buckets nor statistics of phases; both have captions and labels
    other_format="Re-run 'davae cache RECIPE'.",
)


@dataclass(frozen=True)
class CacheManifest:
    """What a cache holds and what made it.

    Args:
        layout: channels of the moments.
        autoencoder: hash of the autoencoder's weights and config.
        source: fingerprint of the images.
        size: side of the images, pixels; with buckets, of the square of their area.
        flips: whether every sample is also stored mirrored.
        dtype: of the stored moments.
        shift: with `scale` and `patch`, the fields of `scaling`.
        scale: see `shift`.
        shards: file name and number of samples of each shard, in order.
        ids: sample ids in storage order.
        skipped: (name, reason) of images that could not be used.
        precision: in which the autoencoder encoded.
        patch: see `shift`.
        buckets: (height, width, number of samples) of each size of images, pixels, in storage order; () stands for
            squares of `size`. A number may be 0.
    """

    layout: LatentLayout
    autoencoder: str
    source: str
    size: int
    flips: bool
    dtype: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    shards: tuple[tuple[str, int], ...] = ()
    ids: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = field(default=())
    precision: str = "fp32"
    patch: int = 1
    buckets: tuple[tuple[int, int, int], ...] = ()
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not self.buckets:
            object.__setattr__(self, "buckets", ((self.size, self.size, len(self.ids)),))

    @property
    def scaling(self) -> LatentScaling:
        """Raw latent -> the transformer's latent."""
        return LatentScaling(self.shift, self.scale, self.patch)

    @property
    def key(self) -> dict[str, object]:
        """What must agree for the cache to serve a recipe."""
        return {
            "autoencoder": self.autoencoder,
            "source": self.source,
            "size": self.size,
            "flips": self.flips,
            "dtype": self.dtype,
            "precision": self.precision,
            "base_channels": self.layout.base_channels,
            "detail_channels": self.layout.detail_channels,
            "buckets": tuple((height, width) for height, width, _ in self.buckets),
        }


Moments = dict[str, Tensor]
""""mean" [N, C + D, h, w] and, with detail channels, "logvar" [N, D, h, w]; the same names with "_flip"."""


def write_cache(
    folder: Path,
    manifest: CacheManifest,
    shards: Iterable[tuple[int, int, Callable[[], Moments]]],
    part: Part = WHOLE,
) -> Path:
    """Write a cache shard by shard; whole shards of the same key that are already there are kept.

    Of several processes, all call this with the same arguments but for `part`, and it returns in all of them when
    the cache is complete. The bytes on disk do not depend on how many they are.

    Args:
        folder: of the cache.
        manifest: without `shards`, which this function fills in.
        shards: (first sample, number of samples, function returning their `Moments`) in storage order. The
            function is called only where the shard is missing.
        part: the shards that this process writes.
    """
    keyed = (Shard(first, count, _shard_key(manifest, first, count), moments) for first, count, moments in shards)
    return _KIND.write(folder, manifest, keyed, part)


def _shard_key(manifest: CacheManifest, first: int, count: int) -> dict[str, object]:
    """Names the samples too: the same images may come in another order when an interrupted run goes on."""
    return {**manifest.key, "ids": text_hash("\n".join(manifest.ids[first : first + count]))}


class LatentCache:
    """Reads a cache by position in storage order without holding it in memory; `manifest.ids` names the samples.

    Args:
        folder: of the cache.

    Raises:
        DataError: there is no complete cache, its format is another, or a shard is missing or cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _KIND.read_manifest(folder, CacheManifest)
        self._starts = [0]
        for name, count in self.manifest.shards:
            [stored] = _KIND.count_rows(folder / name, ["mean"])
            if stored != count:
                raise DataError(f"The latent shard {name} holds {stored} samples, the manifest says {count}.")
            self._starts.append(self._starts[-1] + count)
        _KIND.require_whole(folder, [name for name, _ in self.manifest.shards])
        self._bucket_starts = [0, *accumulate(count for *_, count in self.manifest.buckets)]
        if not self._starts[-1] == self._bucket_starts[-1] == len(self.manifest.ids):
            raise DataError(
                f"The latent cache in {folder} is inconsistent: {self._starts[-1]} stored, "
                f"{len(self.manifest.ids)} named, {self._bucket_starts[-1]} in buckets. Re-run 'davae cache RECIPE'."
            )
        self._scaling = self.manifest.scaling
        if self._scaling.channels != self.manifest.layout.channels:
            raise DataError(
                f"The latent cache in {folder} holds {self.manifest.layout.channels} channels and statistics of "
                f"{self._scaling.channels}. Re-run 'davae cache RECIPE': format 1 could not hold this autoencoder's."
            )
        self._mapped: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.manifest.ids)

    def require(self, **expected: object) -> None:
        """Refuse a cache whose key differs from what a recipe expects, with both values."""
        _KIND.require(self.folder, self.manifest.key, expected)

    def moments(self, indices: Sequence[int], flipped: Sequence[bool] | None = None) -> tuple[Tensor, Tensor]:
        """Raw moments of samples, fp32: mean [N, C + D, h, w] and log-variance [N, D, h, w] (D may be 0).

        Args:
            indices: in storage order, all of one bucket.
            flipped: which samples to take mirrored; None takes none.

        Raises:
            DataError: the samples are of several sizes, or mirrored ones were not stored.
            IndexError: there is no such sample.
        """
        self._require_one_size(indices)
        flags = [False] * len(indices) if flipped is None else [bool(flag) for flag in flipped]
        if any(flags) and not self.manifest.flips:
            raise DataError(f"The latent cache in {self.folder} holds no mirrored samples; re-run with cache.flips.")
        mean = self._gather("mean", indices, flags)
        if self.manifest.layout.detail_channels == 0:
            return mean, mean[:, :0]
        return mean, self._gather("logvar", indices, flags)

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent [N, C + D, h, w] -> the transformer's latent."""
        return self._scaling.normalise(latent)

    def _require_one_size(self, indices: Sequence[int]) -> None:
        lowest, highest = min(indices), max(indices)
        if lowest < 0 or highest >= len(self):
            raise IndexError(
                f"The latent cache in {self.folder} has samples 0 to {len(self) - 1}; got {lowest, highest}."
            )
        buckets = sorted({bisect_right(self._bucket_starts, index) for index in (lowest, highest)})
        if len(buckets) > 1:
            sizes = ", ".join("{}x{}".format(*self.manifest.buckets[bucket - 1]) for bucket in buckets)
            raise DataError(
                f"Latents of several sizes do not stack; got samples of images of {sizes} (height x width). Read "
                f"one bucket at a time, as BucketOrder does for every step of a training."
            )

    def _gather(self, name: str, indices: Sequence[int], flags: Sequence[bool]) -> Tensor:
        rows = [
            self._row(f"{name}_flip" if flip else name, index) for index, flip in zip(indices, flags, strict=True)
        ]
        # From the file to their place and dtype in one pass, which stacking and converting would do in two.
        result = torch.empty(len(rows), *rows[0].shape)
        for place, row in enumerate(rows):
            result[place] = row
        return result

    def _row(self, name: str, index: int) -> Tensor:
        shard = bisect_right(self._starts, index) - 1
        return self._shard(shard)[name][index - self._starts[shard]]

    def _shard(self, number: int) -> dict[str, Tensor]:
        """Tensors that stay in the file: only rows that are read take memory, and the system may take it back."""
        name = self.manifest.shards[number][0]
        if name not in self._mapped:
            with safe_open(self.folder / name, framework="pt") as file:
                self._mapped[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return self._mapped[name]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mapped": {}}


def is_complete(folder: Path) -> bool:
    """Whether a whole cache stands in a folder."""
    try:
        LatentCache(folder)
    except DataError:
        return False
    return True
