"""What the check of a set's images found, kept in the cache folder: a set is read once and not at every opening.

A file a set, found by the set's absolute path. It holds hashes, sizes and reasons, 24 bytes a usable image. Whatever
is wrong with it costs the time of a check and nothing else.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from davae.core.files import DIGEST_SIZE, cache_folder, replacing, sweep, text_hash
from davae.data.buckets import Size

Finding = Size | str
"""(height, width) of a usable image as it is shown, or the reason against another one."""

_FORMAT = 1  # another number where `decode.check_image` judges differently
_DAMAGE = (OSError, SafetensorError, KeyError, ValueError, TypeError)  # what reading a file of other contents raises


@dataclass(frozen=True)
class _Table:
    """What a file holds: keys of usable images, sorted, with their sizes; keys, sides and reasons of refused ones."""

    usable: NDArray[np.bytes_]
    sizes: NDArray[np.int32]
    refused: NDArray[np.bytes_]
    sides: NDArray[np.int32]
    reasons: NDArray[np.uint8]

    def stored(self) -> dict[str, NDArray[np.generic]]:
        """Arrays of types that the file format knows."""
        return {
            "usable": self.usable.view(np.uint8),
            "sizes": self.sizes,
            "refused": self.refused.view(np.uint8),
            "sides": self.sides,
            "reasons": self.reasons,
        }


class CheckIndex:
    """Findings by image. Sizes serve for every shortest side up to their own, reasons for the one they were given at.

    Several processes may use one at once: the file is replaced as a whole, and the last one stays.

    Args:
        where: path or pattern of the set.
    """

    def __init__(self, where: str) -> None:
        self._path = _path_of(where)
        table = None if self._path is None else _read(self._path)
        self._table = _table({}, {}) if table is None else table

    def find(self, images: Sequence[bytes], min_side: int) -> list[Finding | None]:
        """What is known of images; None where nothing is.

        Args:
            images: their keys, see `key_of`.
            min_side: shortest side in pixels that they may have.
        """
        wanted = np.array(images, f"S{DIGEST_SIZE}")
        sizes = self._table.sizes
        places, known = _places(self._table.usable, wanted)
        known[known] = sizes[places[known]].min(1) >= min_side
        found: list[Finding | None] = [None] * len(images)
        positions = np.flatnonzero(known)
        for position, (height, width) in zip(positions.tolist(), sizes[places[positions]].tolist(), strict=True):
            found[position] = (height, width)
        reasons = {key: reason for (key, side), reason in self._reasons().items() if side == min_side}
        if reasons:
            for position in np.flatnonzero(~known).tolist():
                found[position] = reasons.get(images[position])
        return found

    def keep(self, images: Sequence[bytes], new: Mapping[bytes, Finding], min_side: int) -> None:
        """Write new findings beside the known ones; what is known of images that are gone is dropped.

        Where the cache folder cannot be written nothing is kept, and the next opening checks again.

        Args:
            images: keys of all images of the set.
            new: findings by key.
            min_side: at which these were found.
        """
        if self._path is None:
            return
        present = set(images)
        usable = zip(_bytes(self._table.usable), self._table.sizes.tolist(), strict=True)
        sizes: dict[bytes, Size] = {key: (height, width) for key, (height, width) in usable if key in present}
        reasons = {(key, side): reason for (key, side), reason in self._reasons().items() if key in present}
        for key, finding in new.items():
            if isinstance(finding, str):
                reasons[key, min_side] = finding
            else:
                sizes[key] = finding
        self._table = _table(sizes, reasons)
        _write(self._path, self._table)

    def _reasons(self) -> dict[tuple[bytes, int], str]:
        keys, sides = _bytes(self._table.refused), self._table.sides.tolist()
        return dict(zip(zip(keys, sides, strict=True), json.loads(self._table.reasons.tobytes()), strict=True))


def key_of(name: str, offset: int, size: int, stamp: int) -> bytes:
    """Hash of what an image is known by: its id, its place in its file, its bytes, their time."""
    return bytes.fromhex(text_hash(f"{offset} {size} {stamp} {name}"))


def _path_of(where: str) -> Path | None:
    """The file of a set; None where there is no place for it."""
    name = hashlib.blake2b(os.fsencode(Path(where).absolute()), digest_size=DIGEST_SIZE).hexdigest()
    try:
        return cache_folder() / "checked" / f"{name}.safetensors"
    except RuntimeError:  # no home, as in some containers
        return None


def _table(sizes: Mapping[bytes, Size], reasons: Mapping[tuple[bytes, int], str]) -> _Table:
    usable = np.array(list(sizes), f"S{DIGEST_SIZE}")
    order = np.argsort(usable)
    return _Table(
        usable[order],
        np.array(list(sizes.values()), np.int32).reshape(-1, 2)[order],
        np.array([key for key, _ in reasons], f"S{DIGEST_SIZE}"),
        np.array([side for _, side in reasons], np.int32),
        np.frombuffer(json.dumps(list(reasons.values())).encode(), np.uint8),
    )


def _places(keys: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where keys stand among sorted ones, and which of them do."""
    if not len(keys):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _bytes(keys: NDArray[np.bytes_]) -> list[bytes]:
    return [key.ljust(DIGEST_SIZE, b"\0") for key in keys.tolist()]  # numpy takes zeros off the end


def _marks(stored: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """What has to agree for a file to serve: who judged the images, and the bytes."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name in sorted(stored):
        digest.update(f"{name} {stored[name].nbytes} ".encode())
        digest.update(stored[name].tobytes())
    judge = f"{_FORMAT}, Pillow {PIL.__version__} up to {Image.MAX_IMAGE_PIXELS} pixels"
    return {"format": judge, "checksum": digest.hexdigest()}


def _read(path: Path) -> _Table | None:
    """The table in a file; None where there is none, or one that was not written by `_write`."""
    try:
        with safe_open(path, framework="np") as file:
            marks = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if marks != _marks(stored):
            return None
        keys = {name: stored[name].view(f"S{DIGEST_SIZE}") for name in ("usable", "refused")}
        return _Table(**{**stored, **keys})
    except _DAMAGE:
        return None


def _write(path: Path, table: _Table) -> None:
    stored = table.stored()
    try:
        sweep(path.parent)
        for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 32}"):  # of earlier versions
            left.unlink(missing_ok=True)
        with replacing(path) as temporary:
            save_file(stored, temporary, _marks(stored))
    except (OSError, SafetensorError):  # a full disk, a folder that is not ours: the set serves without
        return
