"""What the rest of the library asks of a set of images, and what all sets made of files share.

A file set is a list of records, each naming a range of bytes (a whole file or a member of a tar); this module
checks them, counts out the unusable ones and decodes them. Finding the records is the business of
`folder` and `shards`.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davae.core.files import bytes_digest
from davae.core.text import readable
from davae.data import fingerprints
from davae.data.buckets import Size
from davae.data.check_index import CheckIndex, Findings, as_keys, key_of
from davae.data.columns import Firsts, Numbers, Sizes, view
from davae.data.decode import UnusableImage, check_image, decode_cropped, decode_image
from davae.data.errors import DataError
from davae.data.records import UNLABELLED, Record, Records

_THREADS = min(8, os.cpu_count() or 1)
_RECORDS_PER_JOB = 64  # one future per image would cost a gigabyte on ImageNet
_SERIAL_IMAGES = 4  # up to here, starting threads costs more than it brings
_FEW_CLASSES = 100_000  # as many names may be made of numbers, whatever the number of images


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
        """A sentence an image, the first where it has several; "" where there is none."""

    @property
    def all_captions(self) -> Sequence[tuple[str, ...]]:
        """All sentences of each image; () where there is none."""

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
    def identities(self) -> NDArray[np.uint8]:
        """Hash of each image, of its id and contents, [N, 16]."""

    @property
    def fingerprint(self) -> str:
        """Of the images, see `fingerprints`; what is made of images alone depends on it."""

    @property
    def labelled_fingerprint(self) -> str:
        """Of the images and their labels."""

    def __len__(self) -> int:
        """How many images there are."""

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """Return the images, uint8 [N, 3, height, width] in [0, 255]; an int is the side of squares."""


class FileSource:
    """An `ImageSource` over records. Every record is checked at construction, and not again while it is the same."""

    ids: Sequence[str]
    labels: Sequence[int]
    captions: Sequence[str]
    all_captions: Sequence[tuple[str, ...]]
    sizes: Sequence[Size]
    identities: NDArray[np.uint8]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    unusable: tuple[tuple[str, str], ...]
    """Those that were skipped and are candidates; others lie beside the set."""

    def __init__(
        self,
        where: str,
        records: Iterable[Record] | Records,
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
        candidates = records if isinstance(records, Records) else Records.of(records)
        self.class_names = _class_names(where, candidates, class_names)
        found = _check_all(where, candidates, min_side)
        refused = [*unusable, *((candidates.ids[position], reason) for position, reason in found.reasons.items())]
        self.unusable = tuple(sorted(refused))
        self.skipped = tuple(sorted([*refused, *excluded]))
        self._candidates, self._usable = candidates, found.usable
        if not len(self):
            examples = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            raise DataError(
                f"no usable image in {where}: got {len(self.skipped)} unusable ones ({examples}); allowed are "
                f"readable images with a shorter side of at least {min_side} pixels; replace them or ask "
                "for smaller images"
            )
        self.ids = view(candidates.ids, self._usable)
        self.labels = Numbers(np.maximum(candidates.labels[self._usable], 0))
        self.all_captions = view(candidates.captions, self._usable)
        self.captions = Firsts(self.all_captions)
        self.sizes = Sizes(found.sizes[self._usable])
        self.identities = fingerprints.identities(self.ids, found.contents[self._usable])

    def __len__(self) -> int:
        return len(self._usable)

    @property
    def records(self) -> Sequence[Record]:
        """The usable images as they are stored, in the order of `ids`."""
        return [self._candidates[index] for index in self._usable.tolist()]

    @property
    def candidates(self) -> list[str]:
        """Ids of all images of the set, usable or not: the same whatever the shortest side is."""
        return [*self.ids, *(name for name, _ in self.unusable)]

    @cached_property
    def fingerprint(self) -> str:
        """See `ImageSource`."""
        return fingerprints.of_images(self.identities)

    @cached_property
    def labelled_fingerprint(self) -> str:
        """See `ImageSource`."""
        return fingerprints.of_labelled_images(self.identities, self.labels, self.class_names)

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
        records = [self._candidates[self._usable[index]] for index in indices]
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

    def whole(self, index: int) -> Image.Image:
        """Decode an image as it is, upright 8-bit RGB.

        Raises:
            DataError: Its file changed since the set was opened.
        """
        return _decode(self._candidates[self._usable[index]])


def _load(record: Record, size: int | Size) -> Tensor:
    try:
        return decode_cropped(record.read(), record.id, size)
    except (UnusableImage, OSError) as error:
        raise _changed(record, error) from error
    except ValueError as error:
        raise DataError(f"image {record.id}: {error}") from error


def _decode(record: Record) -> Image.Image:
    try:
        return decode_image(record.read(), record.id)
    except (UnusableImage, OSError) as error:
        raise _changed(record, error) from error


def _changed(record: Record, error: Exception) -> DataError:
    return DataError(
        f"cannot load image {record.id}: got {error}; allowed are the bytes that were there when the set was opened; "
        f"restore {readable(record.file)} or start again with the changed set"
    )


def _check_all(where: str, records: Records, min_side: int) -> Findings:
    """Sizes and contents of the usable images and reasons against the others."""
    index = CheckIndex(where)
    known_by = zip(
        records.ids, records.offsets.tolist(), records.sizes.tolist(), records.stamps.tolist(), strict=True
    )
    keys = as_keys(b"".join(key_of(*parts) for parts in known_by))
    found = index.find(keys, min_side)
    unknown, unread = found.unknown, dict[int, str]()

    def check(start: int) -> None:
        for position in unknown[start : start + _RECORDS_PER_JOB]:
            record = records[position]
            try:
                data = record.read()
                found.sizes[position] = check_image(data, record.id, min_side)
                found.contents[position] = np.frombuffer(bytes_digest(data), np.uint8)
            except UnusableImage as error:
                found.reasons[position] = error.reason
            except OSError as error:
                unread[position] = f"unreadable: {error.strerror}"

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(check, range(0, len(unknown), _RECORDS_PER_JOB)))  # list() raises what a thread raised
    if len(unread) < len(unknown):
        index.keep(keys, found, min_side)
    found.reasons.update(unread)  # not kept: a matter of the disk, which may be well next time
    return found


def _class_names(where: str, records: Records, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes, of those without a name their numbers; () where there are no labels."""
    has_none = records.labels == UNLABELLED
    if has_none.all():
        return ()
    if has_none.any():
        raise DataError(
            f"labels of {where} are incomplete: got {(~has_none).sum()} for {len(records)} images, none for "
            f"{records.ids[int(has_none.argmax())]}; allowed is a label for every image or for none; add or remove "
            "labels"
        )
    position = int(records.labels.argmax())
    largest, image = int(records.labels[position]), records.ids[position]
    if not names:
        if largest >= max(_FEW_CLASSES, 10 * len(records)):
            raise DataError(
                f"label of {image} in {where} is no class: got {largest} in a set of {len(records)} images; allowed "
                f"are labels below {max(_FEW_CLASSES, 10 * len(records))}, counted from 0; correct the label or "
                "number the classes"
            )
        return tuple(str(label) for label in range(largest + 1))
    if largest >= len(names):
        raise DataError(
            f"label of {image} in {where} has no class: got {largest}; allowed are 0 to {len(names) - 1}, as "
            f"{len(names)} classes are named; correct the label or the class names"
        )
    return names
