"""Which images of a set are for testing, and parts of a set as sets."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from davae.core.files import DIGEST_SIZE, text_digest
from davae.core.randomness import permutation
from davae.data import fingerprints
from davae.data.buckets import Size
from davae.data.columns import array_of, view
from davae.data.errors import DataError
from davae.data.image_source import FileSource, ImageSource

Rule = Literal["id", "position"]
"""What decides which images are held out."""
DEFAULT_SHARE, DEFAULT_COUNT = 0.1, 512
"""Of a set for which nothing is said: what is held out, and how many images at most."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Which images of a set are for testing: those with the smallest hashes of their ids.

    The choice is made over all candidates of the set, whether they can be used or not. So it is the same at every
    shortest side, and the test images of a larger size are among those of a smaller one.

    Args:
        count: Of the candidates that are held out; None takes about a tenth of them, 512 at most. A candidate that
            is added or damaged changes one test image at most and makes none of an image that was trained on; one
            that is removed may do that, as another one takes its place.
        share: Holds out every candidate whose hash, as a fraction of all hashes, is below it, instead of `count`.
            Then an image keeps its part whatever is added, damaged or removed.
        rule: "position" is how sets were split before ids decided, by a permutation of the usable images' positions;
            it is for runs that began so and for nothing else.

    Raises:
        ValueError: `count` is below 1, `share` is not between 0 and 1, or is given for the rule that knows none.
    """

    count: int | None = None
    share: float | None = None
    rule: Rule = "id"

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(
                f"Cannot hold out {self.count} test images; allowed are 1 and more. Set data.test_count."
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(
                f"Cannot hold out a share of {self.share}; allowed are numbers between 0 and 1. Set data.test_share."
            )
        if self.share is not None and self.rule == "position":
            raise ValueError(
                f"Cannot hold out a share of {self.share} by position: images are counted there. Set data.test_count."
            )

    @property
    def most(self) -> int:
        """Test images that are taken of a set with a test part of its own, at most."""
        return DEFAULT_COUNT if self.count is None else self.count

    def count_of(self, candidates: Collection[str]) -> int:
        """How many candidates are held out, where no share is asked for."""
        if self.count is not None:
            return self.count
        tenth = sum(_fraction(name) < DEFAULT_SHARE for name in candidates)
        return max(1, min(tenth, DEFAULT_COUNT, len(candidates) // 2))

    def choose(self, candidates: Collection[str]) -> set[str]:
        """The ids among `candidates` that are held out by their hashes."""
        if self.share is not None:
            return {name for name in candidates if _fraction(name) < self.share}
        return set(nsmallest(self.count_of(candidates), candidates, key=_hash))


class Subset:
    """Some images of a source, as a source that holds no copy of what is known about them.

    Args:
        source: of all.
        indices: of those that are in it, in its order.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.source, self.indices = source, np.asarray(indices, np.int64)
        self.ids = view(source.ids, self.indices)
        self.labels = view(source.labels, self.indices)
        self.sizes = None if source.sizes is None else view(source.sizes, self.indices)
        self.class_names = source.class_names
        self.skipped = source.skipped

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def captions(self) -> Sequence[str]:
        """See `ImageSource`."""
        return view(self.source.captions, self.indices)

    @property
    def all_captions(self) -> Sequence[tuple[str, ...]]:
        """See `ImageSource`."""
        return view(self.source.all_captions, self.indices)

    @property
    def identities(self) -> NDArray[np.uint8]:
        """See `ImageSource`."""
        return self.source.identities[self.indices]

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource`."""
        return fingerprints.of_images(self.identities)

    @cached_property
    def labelled_fingerprint(self) -> str:
        """See `ImageSource`."""
        return fingerprints.of_labelled_images(self.identities, self.labels, self.class_names)

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """See `ImageSource`."""
        return self.source.images(self.indices[list(indices)].tolist(), size)


def first(source: ImageSource, count: int) -> ImageSource:
    """At most `count` images, spread evenly over the set."""
    if count >= len(source):
        return source
    return Subset(source, np.arange(count) * len(source) // count)


def filling(source: ImageSource, size: int | Size) -> ImageSource:
    """The images of a source that fill a size, (height, width) or the side of a square, without being enlarged."""
    if source.sizes is None:
        return source
    tall, wide = (size, size) if isinstance(size, int) else size
    indices = np.flatnonzero((array_of(source.sizes) >= (tall, wide)).all(1))
    if not len(indices):
        raise DataError(
            f"No image fills {wide}x{tall} pixels: got {len(source)} images, for example {source.ids[0]} of "
            f"{source.sizes[0][1]}x{source.sizes[0][0]}; allowed are images of at least this size. Lower image_size "
            f"or take larger images."
        )
    return source if len(indices) == len(source) else Subset(source, indices)


def hold_out(source: FileSource, choice: HoldOut) -> tuple[ImageSource, ImageSource]:
    """(training, test) images of a set, every usable one in one of the two parts, in the order of the set.

    Raises:
        DataError: a part would have no usable image.
    """
    if choice.rule == "position":
        return _hold_out_by_position(source, choice.most)
    candidates = source.candidates
    if choice.share is None and choice.count_of(candidates) >= len(candidates):
        raise _too_many(choice.count_of(candidates), len(candidates))
    chosen = choice.choose(candidates)
    is_held_out = np.fromiter((name in chosen for name in source.ids), np.bool_, len(source))
    train, test = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    setting = "data.test_count" if choice.share is None else "data.test_share"
    if not chosen:
        raise DataError(
            f"No image is held out: the smallest of {len(candidates)} hashes is not below {setting} {choice.share}. "
            f"Raise it, set data.test_count instead, or add images."
        )
    if not len(test):
        examples = "; ".join([f"{name}: {reason}" for name, reason in source.skipped if name in chosen][:3])
        raise DataError(
            f"No test image: none of the {len(chosen)} images held out of {len(candidates)} can be used; got "
            f"{examples}; allowed is one usable image or more. Raise {setting}, ask for smaller images, or replace "
            f"these."
        )
    if not len(train):
        raise DataError(
            f"No training image: all {len(test)} usable images of {len(candidates)} are held out. Lower {setting}, "
            f"ask for smaller images, or add images."
        )
    return Subset(source, train), Subset(source, test)


def _hold_out_by_position(source: ImageSource, count: int) -> tuple[ImageSource, ImageSource]:
    if count >= len(source):
        raise _too_many(count, len(source))
    order = permutation(0, "hold out", 0, len(source)).numpy()
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))


def _fraction(name: str) -> float:
    """Where a name's hash lies among all hashes, in [0, 1]."""
    return int.from_bytes(_hash(name), "big") / 256**DIGEST_SIZE


def _hash(name: str) -> bytes:
    return text_digest(f"hold out {name}")


def _too_many(count: int, total: int) -> DataError:
    return DataError(
        f"Cannot hold out {count} test images of a set of {total}. Lower data.test_count, leave it out, or add "
        f"images."
    )
