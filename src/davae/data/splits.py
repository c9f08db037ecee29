"""From a path to training and test images: which kind of set lies there, and which parts it has of its own."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from davae.data.decode import IMAGE_SUFFIXES
from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.hold_out import HoldOut, first, hold_out
from davae.data.image_source import FileSource, ImageSource
from davae.data.shards import ShardSource
from davae.data.solids import SolidsSource

SetKind = Literal["auto", "solids", "folder", "shards"]
"""auto tells folders of images from tar shards by looking."""

_TRAIN = ("train", "training")
_TEST = ("val", "valid", "validation", "dev", "test", "testing")
"""Names of parts in any case, the one that is taken first."""
_SHARD_PART = re.compile(r"([A-Za-z]+)(?:[-_.]?\d|[-_.])")  # train-0000.tar, train_00.tar, val0.tar


@dataclass(frozen=True)
class _Parts:
    """Standard parts that a set has: their folders, or their shards' names up to the number."""

    train: str | None
    test: str | None
    others: tuple[str, ...]
    """Standard parts that are not used."""


def open_train_test(
    kind: SetKind, path: str | None, min_side: int, test: HoldOut | int, count: int, seed: int
) -> tuple[ImageSource, ImageSource]:
    """Open a data set and split it.

    Args:
        kind: see `SetKind`.
        path: of a folder or shards.
        min_side: smaller images are skipped.
        test: which images are held out, or how many. A set with parts of its own is split that way: folders `train`
            and `val`, `validation` or `test` in any case, or shards of such names; the count says how many test
            images are taken at most.
        count: training scenes (solids).
        seed: of the scenes (solids); test scenes have another one.

    Raises:
        DataError: the set cannot be opened, a part would be empty, or a share is asked of a set that has parts.
    """
    choice = HoldOut(count=test) if isinstance(test, int) else test
    if kind == "solids":
        _refuse_share(choice, "solids render their test images")
        return SolidsSource(count, seed), SolidsSource(choice.most, seed + 1_000_003)
    if path is None:
        raise DataError(
            f"cannot open a set of kind {kind}: got no path; allowed is a folder or shards; set data.path"
        )
    root = Path(path)
    if kind == "auto":
        kind = "shards" if _holds_shards(root) else "folder"
    if kind == "shards":
        parts = _find_parts([file.name for file in _files(root) if file.suffix == ".tar"], _shard_part)
        return _open(root, parts, choice, lambda part: ShardSource(_shards_of(root, part), min_side))
    parts = _find_parts([folder.name for folder in _folders(root)], str)
    return _open(root, parts, choice, lambda part: FolderSource(root if part is None else root / part, min_side))


def _open(
    root: Path, parts: _Parts, choice: HoldOut, source: Callable[[str | None], FileSource]
) -> tuple[ImageSource, ImageSource]:
    """The parts of a set, or what is held out of it. `source` opens a part, or for None the whole."""
    if parts.train is None or parts.test is None:
        return hold_out(source(None), choice)
    _refuse_share(choice, f"{root} has a part {parts.test} of its own")
    train, test = source(parts.train), source(parts.test)
    for other in parts.others:
        reason = f"a part that is not used: {parts.train} is trained on, {parts.test} is for testing"
        train.skipped = (*train.skipped, (other, reason))
    return train, first(test, choice.most)


def _find_parts(names: list[str], part_of: Callable[[str], str]) -> _Parts:
    """The standard parts among names; without a training and a test part there are none."""
    spelt: dict[str, str] = {}
    for name in sorted(names):
        spelt.setdefault(part_of(name).lower(), part_of(name))
    train = next((spelt[name] for name in _TRAIN if name in spelt), None)
    test = next((spelt[name] for name in _TEST if name in spelt), None)
    if train is None or test is None:
        return _Parts(None, None, ())
    return _Parts(train, test, tuple(name for name in spelt.values() if name not in (train, test)))


def _shard_part(name: str) -> str:
    match = _SHARD_PART.match(name)
    return name if match is None else match[1]


def _shards_of(root: Path, part: str | None) -> Path:
    """The shards of a part, as `ShardSource` takes them."""
    if part is None:
        return root
    alone = root / f"{part}.tar"
    return alone if alone.is_file() else root / f"{part}[-_.0-9]*.tar"


def _holds_shards(root: Path) -> bool:
    """Whether shards lie at a path: a .tar file, a pattern, or a folder with at least as many of them as images."""
    if not root.is_dir():
        return root.suffix == ".tar"
    num_shards = sum(file.suffix == ".tar" for file in _files(root))
    if not num_shards:
        return False
    num_images = 0
    for _, _, names in os.walk(root):
        num_images += sum(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
        if num_images > num_shards:
            return False
    return True


def _files(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_file()] if root.is_dir() else []


def _folders(root: Path) -> list[Path]:
    return [entry for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []


def _refuse_share(choice: HoldOut, reason: str) -> None:
    if choice.share is not None:
        raise DataError(
            f"Nothing is held out by a share: got data.test_share {choice.share}, but {reason}; allowed is "
            f"data.test_count. Leave data.test_share out."
        )
