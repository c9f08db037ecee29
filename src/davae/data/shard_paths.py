"""Where shards lie: a folder, a file, or a pattern. What exists under a name is meant by it, not as a pattern."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from davae.data.errors import DataError

_MAGIC = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 1_000_000  # shards that braces may name


def find_shards(shards: str) -> tuple[Path, list[Path]]:
    """Return the folder that ids are relative to, and the shards, sorted.

    Args:
        shards: A folder with `.tar` files, one such file, or a pattern such as `train-*.tar` or
            `train-{00000..00009}.tar`. Folders may have names that look like patterns.

    Raises:
        DataError: There is none, or one of a pattern is missing.
    """
    path = Path(shards)
    if path.is_dir():
        files = sorted(entry for entry in path.iterdir() if entry.suffix == ".tar" and entry.is_file())
        if not files:
            raise DataError(
                f"no shard in {path}: got {sum(1 for _ in path.iterdir())} other entries; allowed are .tar files; "
                "correct the path, or open it as an image folder"
            )
        return path, files
    if path.is_file():
        return path.parent, [path]
    folder, pattern = _literal(path)
    if not _MAGIC.search(pattern):
        raise DataError(
            f"cannot open shards {shards}: got nothing there; allowed is a folder, a .tar file or a pattern; "
            "correct the path"
        )
    found: set[Path] = set()
    for one in _expand_braces(pattern):
        literal = folder / one
        matches = [literal] if literal.is_file() else [folder / name for name in glob.glob(one, root_dir=folder)]  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(
                f"cannot open shards {shards}: got no file for {folder / one}; allowed are patterns that all exist; "
                "correct the pattern or fetch the missing shard"
            )
        found.update(files)
    return folder, sorted(found)


def is_pattern(path: Path) -> bool:
    """Whether a path may mean several files."""
    return _MAGIC.search(str(path)) is not None


def _literal(path: Path) -> tuple[Path, str]:
    """The longest beginning of a path that exists, and the rest of it."""
    for parent in path.parents:
        if parent.is_dir():
            return parent, str(path.relative_to(parent))
    return Path(path.anchor), str(path.relative_to(path.anchor))


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    for choice in _choices(match[1], pattern):
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _choices(body: str, pattern: str) -> list[str]:
    numbers = _RANGE.fullmatch(body)
    if numbers is None:
        return body.split(",")
    first, last = numbers.groups()
    if not 0 <= int(last) - int(first) < _MOST:
        raise DataError(
            f"cannot expand {pattern}: got {{{body}}}; allowed are ranges that go up, to {_MOST:,} shards; swap or "
            "correct the two numbers"
        )
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
