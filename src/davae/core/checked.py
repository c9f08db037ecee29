"""Which files were read and found whole: until something touches them they need not be read again.

Their stamps are kept in the cache folder, so that nothing is written where one only reads.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from davae.core.files import cache_folder, stamp, text_hash
from davae.core.state import found_json, write_json


def damaged(folder: Path, names: Iterable[str], is_whole: Callable[[Path], bool]) -> list[str]:
    """Those of the named files that are missing or not whole.

    Args:
        folder: that holds them.
        names: of the files.
        is_whole: reads a file.
    """
    known = _read(folder)
    found, read = [], False
    for name in names:
        now = _stamp(folder / name)
        if now is None:
            found.append(name)
        elif known.get(name) != now:
            read = True
            if is_whole(folder / name):
                known[name] = now
            else:
                found.append(name)
    if read:
        _write(folder, known)
    return found


def note(folder: Path, names: Iterable[str]) -> None:
    """Say of files that they are whole, because they were just written or read; what was said before is forgotten."""
    stamps = {name: _stamp(folder / name) for name in names}
    _write(folder, {name: now for name, now in stamps.items() if now is not None})


def _stamp(path: Path) -> list[int] | None:
    return list(stamp(path)) if path.is_file() else None


def _read(folder: Path) -> dict[str, list[int]]:
    try:
        return found_json(_notes(folder), dict[str, list[int]]) or {}
    except RuntimeError:  # this user has no home
        return {}


def _write(folder: Path, stamps: dict[str, list[int]]) -> None:
    with suppress(OSError, RuntimeError):  # a full disk or no home: the files are read again next time
        write_json(_notes(folder), stamps)


def _notes(folder: Path) -> Path:
    return cache_folder() / "checked" / f"{text_hash(str(folder.resolve()))}.json"
