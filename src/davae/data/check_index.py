"""What the check of a set's images found, kept in the cache folder: a set is read once and not at every opening.

It holds hashes, sizes and reasons, 40 bytes a usable image.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from davae.core.files import DIGEST_SIZE, text_digest
from davae.data.kept_arrays import KeptArrays

_FORMAT = 2  # another number where `decode.check_image` judges differently

Keys = NDArray[np.bytes_]
"""Hashes of images [N], each of 16 bytes; numpy takes zeros off the end of one that is asked for."""


@dataclass
class Findings:
    """What is known of images at a shortest side, by position; nothing of those that have no part in it.

    Args:
        sizes: (height, width) as they are shown, int32 [N, 2]; 0 where an image is refused or not known.
        contents: hash of the bytes of the usable ones, uint8 [N, 16].
        reasons: against the others.
    """

    sizes: NDArray[np.int32]
    contents: NDArray[np.uint8]
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def usable(self) -> NDArray[np.intp]:
        """Positions of the usable images."""
        return np.flatnonzero(self.sizes[:, 0])

    @property
    def unknown(self) -> list[int]:
        """Positions of images that nothing is known of."""
        return [
            position for position in np.flatnonzero(self.sizes[:, 0] == 0).tolist() if position not in self.reasons
        ]


@dataclass(frozen=True)
class _Table:
    """What is kept: sorted keys of usable images, sizes and contents; keys, sides and reasons of refused ones."""

    usable: Keys
    sizes: NDArray[np.int32]
    contents: NDArray[np.uint8]
    refused: Keys
    sides: NDArray[np.int32]
    reasons: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        usable: Keys,
        sizes: NDArray[np.int32],
        contents: NDArray[np.uint8],
        reasons: Mapping[tuple[bytes, int], str],
    ) -> "_Table":
        """A table of images in any order, each once or several times."""
        keys, order = np.unique(usable, return_index=True)
        return cls(
            keys,
            sizes[order],
            contents[order],
            as_keys(b"".join(key for key, _ in reasons)),
            np.array([side for _, side in reasons], np.int32),
            np.frombuffer(json.dumps(list(reasons.values())).encode(), np.uint8),
        )

    def reasons_by_key(self) -> dict[tuple[bytes, int], str]:
        """(key, shortest side) -> reason."""
        names = zip(_each(self.refused), self.sides.tolist(), strict=True)
        return dict(zip(names, json.loads(self.reasons.tobytes()), strict=True))


class CheckIndex:
    """Findings by image. Sizes serve for every shortest side up to their own, reasons for the one they were given at.

    Args:
        where: path or pattern of the set.
    """

    def __init__(self, where: str) -> None:
        self._kept = KeptArrays(
            "checked", where, f"{_FORMAT}, Pillow {PIL.__version__} up to {Image.MAX_IMAGE_PIXELS}"
        )
        stored = self._kept.read()
        if stored is None:
            self._table = _Table.of(
                as_keys(b""), np.zeros((0, 2), np.int32), np.zeros((0, DIGEST_SIZE), np.uint8), {}
            )
        else:
            self._table = _Table(**{**stored, **{name: as_keys(stored[name]) for name in ("usable", "refused")}})

    def find(self, images: Keys, min_side: int) -> Findings:
        """What is known of images.

        Args:
            images: see `key_of`.
            min_side: shortest side in pixels that they may have.
        """
        table = self._table
        places, known = _places(table.usable, images)
        known[known] = table.sizes[places[known]].min(1) >= min_side
        found = Findings(np.zeros((len(images), 2), np.int32), np.zeros((len(images), DIGEST_SIZE), np.uint8))
        found.sizes[known], found.contents[known] = table.sizes[places[known]], table.contents[places[known]]
        reasons = {key: reason for (key, side), reason in table.reasons_by_key().items() if side == min_side}
        if reasons:
            unusable = np.flatnonzero(~known)
            for position, key in zip(unusable.tolist(), _each(images[unusable]), strict=True):
                if key in reasons:
                    found.reasons[position] = reasons[key]
        return found

    def keep(self, images: Keys, findings: Findings, min_side: int) -> None:
        """Write findings beside the known ones; what is known of images that are gone is dropped.

        Args:
            images: keys of all images of the set.
            findings: about them.
            min_side: at which these were found.
        """
        table, usable = self._table, findings.usable
        present = np.isin(table.usable, images)
        refused = sorted(findings.reasons)
        names = {*_each(images[refused]), *_each(np.intersect1d(table.refused, images))}
        reasons = {(key, side): reason for (key, side), reason in table.reasons_by_key().items() if key in names}
        for position, key in zip(refused, _each(images[refused]), strict=True):
            reasons[key, min_side] = findings.reasons[position]
        self._table = _Table.of(
            np.concatenate([images[usable], table.usable[present]]),
            np.concatenate([findings.sizes[usable], table.sizes[present]]),
            np.concatenate([findings.contents[usable], table.contents[present]]),
            reasons,
        )
        self._kept.write({name: _storable(array) for name, array in vars(self._table).items()})


def key_of(name: str, offset: int, size: int, stamp: int) -> bytes:
    """Hash of what an image is known by: its id, its place in its file, its bytes, their time."""
    return text_digest(f"{offset} {size} {stamp} {name}")


def as_keys(joined: bytes | NDArray[np.uint8]) -> Keys:
    """Hashes that stand one after the other."""
    return np.frombuffer(joined, f"S{DIGEST_SIZE}")


def _places(keys: Keys, wanted: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where keys stand among sorted ones, and which of them do."""
    if not len(keys):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _each(keys: Keys) -> list[bytes]:
    return [key.ljust(DIGEST_SIZE, b"\0") for key in keys.tolist()]


def _storable(array: NDArray) -> NDArray:
    """The array in a type that the file format knows."""
    return array.view(np.uint8) if array.dtype.kind == "S" else array
