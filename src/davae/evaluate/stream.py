"""Features of a set of images, streamed: files are read, decoded and resized while the network computes.

They are kept in shards of 256 images, each named by a hash of its images' contents and of the space's identity, whole
or absent. So an interrupted extraction goes on where it stopped, a set of which a part changed is done in part, and
the numbers made of the shards do not depend on batches nor on how many processes filled them.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from davae.core.files import DIGEST_SIZE, cache_folder, replacing, sweep
from davae.core.observer import Observer, Silent
from davae.data.image_list import ImageList
from davae.evaluate.processes import Processes
from davae.evaluate.spaces.resize import Pixels
from davae.evaluate.spaces.space import FeatureSpace

T = TypeVar("T")
SHARD = 256
"""Images of a shard."""
_THREADS = min(16, max(2, os.cpu_count() or 1))
_BATCHES_AHEAD = 2
_SHARDS_AHEAD = 2  # whose contents are hashed before their turn


@dataclass(frozen=True)
class Extraction:
    """How features come about. None of it changes them by more than the rounding of float32.

    Args:
        batch_size: images through the network at once.
        device: where it computes.
        folder: where features are kept; None takes `features` in the cache folder.
        processes: that share the work.
        observer: who watches.
    """

    batch_size: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path | None = None
    processes: Processes = field(default_factory=Processes)
    observer: Observer = field(default_factory=Silent)


class FeatureRows:
    """Vectors [N, F] in shards on the disk, a row an image.

    A shard is mapped while some of its rows are taken and no longer: what was read once does not stay in memory.

    Args:
        lengths: rows of each shard.
        length: F.
        read: number of a shard -> its rows.
    """

    def __init__(self, lengths: Sequence[int], length: int, read: Callable[[int], NDArray[np.float32]]) -> None:
        self._ends = np.cumsum(lengths)
        self._read = read
        self.shape = (int(self._ends[-1]), length)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]:
        """Some rows, by a slice or an array of row numbers."""
        wanted = np.arange(len(self))[rows]
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        shards = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shards):
            places = np.flatnonzero(shards == number)
            shard = self._read(int(number))
            found[places] = shard[wanted[places] - (self._ends[number] - len(shard))]
        return found


@dataclass(frozen=True)
class _Shard:
    number: int
    images: range


def extract(
    images: ImageList, space: FeatureSpace, features: Sequence[str], extraction: Extraction
) -> dict[str, FeatureRows]:
    """The named features of all images, in their order.

    Raises:
        DataError: an image cannot be read any more.
        FloatingPointError: a feature is not finite; the text names the image.
        FileNotFoundError: another process keeps its features in another folder.
    """
    store = _Store((extraction.folder or cache_folder() / "features") / space.name, space)
    shards = [_Shard(i // SHARD, range(i, min(i + SHARD, len(images)))) for i in range(0, len(images), SHARD)]
    keys = extraction.processes.gather(_fill(store, images, space, features, shards, extraction))
    names = [key for _, key in sorted(keys)]
    return {feature: _rows(store, feature, names, [len(shard.images) for shard in shards]) for feature in features}


def _rows(store: "_Store", feature: str, names: Sequence[str], lengths: Sequence[int]) -> FeatureRows:
    """Kept shards as one array, all of which are there."""
    for name in names:
        store.read(feature, name)
    return FeatureRows(lengths, store.length(feature), lambda number: store.read(feature, names[number]))


@torch.inference_mode()
def _fill(
    store: "_Store",
    images: ImageList,
    space: FeatureSpace,
    features: Sequence[str],
    shards: Sequence[_Shard],
    extraction: Extraction,
) -> list[tuple[int, str]]:
    """Number and name of this process's shards, all of which are there in the end."""
    mine = extraction.processes.mine(shards)
    keys: list[tuple[int, str]] = []
    space.network.to(extraction.device)
    observer, done = extraction.observer, 0
    observer.begin(f"features: {Path(images.where).name}", sum(len(shard.images) for shard in mine))
    pool = ThreadPoolExecutor(_THREADS)

    def prepare(index: int) -> Pixels:
        return space.prepare(images.decode(index, images.content(index)))

    def jobs() -> Iterator[tuple[_Shard, str, list[Future[Pixels]]]]:
        """Batches of the shards that are not there, on their way."""
        nonlocal done
        hashed = ((shard, pool.submit(store.name_of, images, shard.images)) for shard in mine)
        for shard, future in _ahead(hashed, _SHARDS_AHEAD):
            name = future.result()
            keys.append((shard.number, name))
            if all(store.has(feature, name, len(shard.images)) for feature in features):
                done += len(shard.images)
                observer.advance(done)
                continue
            for start in range(0, len(shard.images), extraction.batch_size):
                batch = shard.images[start : start + extraction.batch_size]
                yield shard, name, [pool.submit(prepare, index) for index in batch]

    parts: dict[str, list[NDArray[np.float32]]] = {feature: [] for feature in features}
    rows = 0
    try:
        with torch.backends.cudnn.flags(allow_tf32=False):
            for shard, name, futures in _ahead(jobs(), _BATCHES_AHEAD):
                inputs = torch.from_numpy(np.stack([future.result() for future in futures]))
                vectors = space.compute(inputs.to(extraction.device))
                for feature in features:
                    values = vectors[feature].float().cpu().numpy()
                    _refuse_non_finite(values, feature, space, images, shard.images[rows])
                    parts[feature].append(values)
                rows, done = rows + len(futures), done + len(futures)
                observer.advance(done)
                if rows == len(shard.images):
                    store.write(name, {feature: np.concatenate(part) for feature, part in parts.items()})
                    parts, rows = {feature: [] for feature in features}, 0
    finally:
        pool.shutdown(cancel_futures=True)
    observer.end()
    return keys


def _ahead(jobs: Iterable[T], depth: int) -> Iterator[T]:
    """The same, begun `depth` of them before they are taken."""
    begun: deque[T] = deque()
    for job in jobs:
        begun.append(job)
        if len(begun) > depth:
            yield begun.popleft()
    yield from begun


def _refuse_non_finite(
    values: NDArray[np.float32], feature: str, space: FeatureSpace, images: ImageList, first: int
) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise FloatingPointError(
            f"Feature '{feature}' of {space.identity['extractor']} is not finite for image "
            f"{images.ids[first + int(bad[0])]} of {images.where}. Check the weights: {dict(space.about)}."
        )


class _Store:
    """Shards of a space's features on the disk: an array a feature and shard."""

    def __init__(self, folder: Path, space: FeatureSpace) -> None:
        self._folder, self._lengths = folder, space.lengths
        self._identity = json.dumps(space.identity, sort_keys=True)
        for feature in space.lengths:
            sweep(folder / feature)

    def name_of(self, images: ImageList, indices: Iterable[int]) -> str:
        """What a shard of these images is called: a hash of their contents and of what makes the features."""
        digest = hashlib.blake2b(self._identity.encode(), digest_size=DIGEST_SIZE)
        for index in indices:
            digest.update(hashlib.blake2b(images.content(index), digest_size=DIGEST_SIZE).digest())
            digest.update(repr(images.sizes[index]).encode())
        return digest.hexdigest()

    def has(self, feature: str, name: str, count: int) -> bool:
        """Whether a whole shard is there; a damaged one is none."""
        try:
            found = self.read(feature, name)
        except (OSError, ValueError, EOFError):
            return False
        return found.shape == (count, self._lengths[feature]) and found.dtype == np.float32

    def length(self, feature: str) -> int:
        """Numbers of a vector."""
        return self._lengths[feature]

    def read(self, feature: str, name: str) -> NDArray[np.float32]:
        """A shard [images, F], mapped into memory."""
        return np.load(self._path(feature, name), mmap_mode="r", allow_pickle=False)

    def write(self, name: str, vectors: dict[str, NDArray[np.float32]]) -> None:
        """Keep a shard of each feature."""
        for feature, values in vectors.items():
            with replacing(self._path(feature, name)) as temporary, temporary.open("wb") as file:
                np.save(file, values)

    def _path(self, feature: str, name: str) -> Path:
        return self._folder / feature / f"{name}.npy"
