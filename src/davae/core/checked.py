"""Which files were read and found whole: until something touches them they need not be read again.

Their stamps are kept in the cache folder, so that nothing is written where one only reads.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from davae.core.files import cache_folder, file_hash, model_files, stamp, text_hash
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


def content_hash(folder: Path) -> str:
    """Hex hash of a saved model, as `core.files.folder_hash` means it; only files that something touched are read."""
    notes, names = "hashes", {file.relative_to(folder).as_posix(): file for file in model_files(folder)}
    known = _read(folder, notes)
    stamps = {name: list(stamp(file)) for name, file in names.items()}
    changed = [name for name in names if known.get(name, [])[1:] != stamps[name]]
    with ThreadPoolExecutor() as threads:
        read = dict(zip(changed, threads.map(file_hash, [names[name] for name in changed]), strict=True))
    hashes = {name: read[name] if name in read else known[name][0] for name in names}
    if changed:
        _write(folder, {name: [hashes[name], *stamps[name]] for name in names}, notes)
    return text_hash(json.dumps(hashes, sort_keys=True))


def _stamp(path: Path) -> list[int] | None:
    return list(stamp(path)) if path.is_file() else None


def _read(folder: Path, kind: str = "checked") -> dict[str, list[Any]]:
    try:
        return found_json(_notes(folder, kind), dict[str, list[Any]]) or {}
    except RuntimeError:  # this user has no home
        return {}


def _write(folder: Path, stamps: Mapping[str, list[Any]], kind: str = "checked") -> None:
    with suppress(OSError, RuntimeError):  # a full disk or no home: the files are read again next time
        write_json(_notes(folder, kind), stamps)


def _notes(folder: Path, kind: str) -> Path:
    return cache_folder() / kind / f"{text_hash(str(folder.resolve()))}.json"
