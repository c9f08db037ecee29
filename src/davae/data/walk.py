"""Files under a folder: what is there, by names that are text, and what cannot be read as a file."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from davae.core.text import readable

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class File:
    """A regular file.

    Attributes:
        path: Where it lies; may hold bytes that are no text.
        size: Its bytes.
        stamp: Time of its last change, nanoseconds.
    """

    path: str
    size: int
    stamp: int


@dataclass(frozen=True)
class Tree:
    """What lies under a folder.

    Attributes:
        files: Regular files by their names relative to the folder, which are text; in order.
        refused: (name, reason) of what is there and cannot be opened.
    """

    files: dict[str, File] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def walk(root: Path) -> Tree:
    """Find the files under a folder. Names with a leading dot are passed over; linked folders are followed."""
    tree, files = Tree(), dict[str, File]()
    for name, found in _entries(str(root), "", frozenset()):
        if isinstance(found, str):
            tree.refused.append((name, found))
        elif name in files:
            tree.refused.append((name, f"another file's name is the same as text; rename {readable(found.path)}"))
        else:
            files[name] = found
    tree.files.update(sorted(files.items()))
    return tree


def _entries(folder: str, prefix: str, parents: frozenset[str]) -> Iterator[tuple[str, File | str]]:
    """(name, file or reason against it) of what a folder holds."""
    real = os.path.realpath(folder)
    if real in parents:  # a link that leads back to where we are
        return
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        yield prefix.rstrip("/") or ".", f"unreadable: {error.strerror}"
        return
    for entry in visible:
        name = prefix + readable(entry.name)
        try:
            found = entry.stat()
        except OSError as error:  # a link to nothing or to itself
            yield name, f"unreadable: {error.strerror}"
            continue
        if stat.S_ISDIR(found.st_mode):
            yield from _entries(entry.path, f"{name}/", parents | {real})
        elif stat.S_ISREG(found.st_mode):
            yield name, File(entry.path, found.st_size, found.st_mtime_ns)
        else:
            yield name, f"{_KINDS.get(stat.S_IFMT(found.st_mode), 'something')} and no file"
