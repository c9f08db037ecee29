"""What the rest of the library asks of a set of images, and what all sets made of files share.

A file set is a list of records, each naming a range of bytes (a whole file or a member of a tar); this module
checks them, counts out the unusable ones and decodes them. Finding the records is the business of
`folder` and `shards`.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from davae.data.buckets import Size
from davae.data.check_index import CheckIndex, Finding, key_of
from davae.data.decode import UnusableImage, center_crop_resize, check_image, decode_image
from davae.data.errors import DataError

_THREADS = min(8, os.cpu_count() or 1)
_RECORDS_PER_JOB = 64  # one future per image would cost a gigabyte on ImageNet
_SERIAL_IMAGES = 4  # up to here, starting threads costs more than it brings


class ImageSource(Protocol):
    """Images with a stable id each. `images` is a pure function of its arguments."""

    @property
    def ids(self) -> Sequence[str]:
        """Stable and unique, in a fixed order."""

    @property
    def labels(self) -> Sequence[int]:
        """Class indices, all 0 when the set has no classes."""

    @property
    def captions(self) -> Sequence[str]:
        """ "" where there is none."""

    @property
    def sizes(self) -> Sequence[Size] | None:
        """(height, width) of each image as it is shown, pixels; None where images are drawn at any size."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty when the set has no classes."""

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of images that are not part of the set because they cannot be used."""

    @property
    def fingerprint(self) -> str:
        """Hex hash of what the set holds; enters the keys of caches."""

    def __len__(self) -> int:
        """How many images there are."""

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """Return the images, uint8 [N, 3, height, width] in [0, 255]; an int is the side of squares."""


@dataclass(frozen=True, slots=True)
class Record:
    """One candidate image: `size` bytes of `file` from `offset`, and what is known about it.

    Attributes:
        stamp: Changes when the bytes may have changed (modification time of the file, in nanoseconds).
        label: None when the set does not give one.
        captions: One or several sentences; () when the set has none.
    """

    id: str
    file: str
    offset: int
    size: int
    stamp: int
    label: int | None = None
    captions: tuple[str, ...] = ()

    def read(self) -> bytes:
        """Return the bytes. Opens the file anew, so threads, forks and pickles share nothing."""
        with Path(self.file).open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size)


class FileSource:
    """An `ImageSource` over records. Every record is checked at construction, and not again while it is the same."""

    ids: Sequence[str]
    labels: Sequence[int]
    captions: Sequence[str]
    sizes: Sequence[Size]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    fingerprint: str

    def __init__(
        self,
        where: str,
        records: Iterable[Record],
        *,
        min_side: int,
        class_names: tuple[str, ...] = (),
        unusable: Iterable[tuple[str, str]] = (),
        excluded: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Check the records.

        Args:
            where: The set's path, for errors.
            records: Candidates with unique ids, in the order of the set.
            min_side: Shortest side in pixels that an image may have.
            class_names: One name per label; () to name labels by their number.
            unusable: (id, reason) of further candidates, which were already found unusable.
            excluded: (name, reason) of images that lie beside the set and are no part of it.

        Raises:
            DataError: No image is usable, or labels are incomplete or out of range.
        """
        if min_side < 1:
            raise DataError(f"cannot open {where}: got min_side {min_side}; allowed are 1 and more; correct it")
        candidates = tuple(records)
        self.class_names = _class_names(where, candidates, class_names)
        sizes, reasons = _check_all(where, candidates, min_side)
        self._records = tuple(record for record in candidates if record.id not in reasons)
        refused = [*unusable, *reasons.items()]
        self._unusable = [name for name, _ in refused]
        self.skipped = tuple(sorted([*refused, *excluded]))
        if not self._records:
            examples = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            raise DataError(
                f"no usable image in {where}: got {len(self.skipped)} unusable ones ({examples}); allowed are "
                f"readable images with a shorter side of at least {min_side} pixels; replace them or ask "
                "for smaller images"
            )
        self.ids = [record.id for record in self._records]
        self.labels = [record.label or 0 for record in self._records]
        self.captions = [record.captions[0] if record.captions else "" for record in self._records]
        self.sizes = [sizes[record.id] for record in self._records]
        self.fingerprint = _fingerprint(self._records, self.class_names)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def candidates(self) -> list[str]:
        """Ids of all images of the set, usable or not: the same whatever the shortest side is."""
        return [*self.ids, *self._unusable]

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """Decode, shrink and centre-crop images.

        Args:
            indices: Positions in `ids`.
            size: (height, width) in pixels or the side of squares; each of the images has at least these.

        Returns:
            uint8 [N, 3, height, width] in [0, 255].

        Raises:
            DataError: An image would have to be enlarged, or its file changed since the set was opened.
        """
        records = [self._records[index] for index in indices]
        height, width = (size, size) if isinstance(size, int) else size
        images = torch.empty(len(records), 3, height, width, dtype=torch.uint8)

        def fill(position: int) -> None:
            images[position] = _load(records[position], size)

        if len(records) <= _SERIAL_IMAGES:
            for position in range(len(records)):
                fill(position)
        else:
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(fill, range(len(records))))  # list() raises what a thread raised
        return images


def _load(record: Record, size: int | Size) -> Tensor:
    try:
        return center_crop_resize(decode_image(record.read(), record.id), size)
    except (UnusableImage, OSError) as error:
        raise DataError(
            f"cannot load image {record.id}: got {error}; allowed are the bytes that were there when the set was "
            f"opened; restore {record.file} or start again with the changed set"
        ) from error
    except ValueError as error:
        raise DataError(f"image {record.id}: {error}") from error


def _check_all(where: str, records: Sequence[Record], min_side: int) -> tuple[dict[str, Size], dict[str, str]]:
    """Sizes of the usable images and reasons against the others, both by id."""
    index = CheckIndex(where)
    keys = [key_of(record.id, record.offset, record.size, record.stamp) for record in records]
    found = index.find(keys, min_side)
    unknown = [position for position, finding in enumerate(found) if finding is None]
    new: dict[bytes, Finding] = {}

    def check(start: int) -> None:
        for position in unknown[start : start + _RECORDS_PER_JOB]:
            record = records[position]
            try:
                found[position] = new[keys[position]] = check_image(record.read(), record.id, min_side)
            except UnusableImage as error:
                found[position] = new[keys[position]] = error.reason
            except OSError as error:
                found[position] = f"unreadable: {error.strerror}"  # a matter of the disk, which may be well next time

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(check, range(0, len(unknown), _RECORDS_PER_JOB)))  # list() raises what a thread raised
    if new:
        index.keep(keys, new, min_side)
    pairs = list(zip(records, found, strict=True))
    sizes = {record.id: finding for record, finding in pairs if isinstance(finding, tuple)}
    return sizes, {record.id: finding for record, finding in pairs if isinstance(finding, str)}


def _class_names(where: str, records: Sequence[Record], names: tuple[str, ...]) -> tuple[str, ...]:
    labels = [record.label for record in records if record.label is not None]
    if not labels:
        return ()
    if len(labels) < len(records):
        missing = next(record.id for record in records if record.label is None)
        raise DataError(
            f"labels of {where} are incomplete: got {len(labels)} for {len(records)} images, none for {missing}; "
            "allowed is a label for every image or for none; add or remove labels"
        )
    if not names:
        return tuple(str(label) for label in range(max(labels) + 1))
    if max(labels) >= len(names):
        worst = next(record.id for record in records if record.label == max(labels))
        raise DataError(
            f"label of {worst} in {where} has no class: got {max(labels)}; allowed are 0 to {len(names) - 1}, as "
            f"{len(names)} classes are named; correct the label or the class names"
        )
    return names


def _fingerprint(records: Iterable[Record], class_names: tuple[str, ...]) -> str:
    # Paths stay out: a set that was moved is the same set.
    digest = hashlib.sha256(repr(class_names).encode())
    for record in records:
        held = (record.id, record.offset, record.size, record.stamp, record.label, record.captions)
        digest.update(repr(held).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
