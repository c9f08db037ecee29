"""Tar shards in the WebDataset layout as an `ImageSource`.

The tar headers are read once; images are then read at random by offset. The order is that of the shards, which reads
fastest.
"""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from davae.data.annotations import read_text
from davae.data.errors import DataError
from davae.data.image_source import FileSource
from davae.data.records import Records
from davae.data.shard_index import Known, ShardIndex, known_by
from davae.data.tar_samples import TarSamples, read_samples

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class ShardSource(FileSource):
    """All samples of a set of tar shards; a sample's id is "shard/key".

    A `classes.json` beside the shards names the classes: a list of names, or an object from index to name (or to
    an object with a `name`).
    """

    def __init__(self, shards: str | Path, min_side: int) -> None:
        """Index the shards and check the images.

        Args:
            shards: A folder with `.tar` files, one such file, or a pattern such as `train-*.tar` or
                `train-{00000..00009}.tar`.
            min_side: Shortest side in pixels that an image may have; smaller ones are skipped.

        Raises:
            DataError: No shard, a missing or damaged one, wrong annotations, or no usable image.
        """
        root, files = _find_shards(str(shards))
        samples = _samples(str(shards), root, files)
        super().__init__(
            str(shards),
            Records.joined([shard.records for shard in samples]),
            min_side=min_side,
            class_names=_read_class_names(files[0].parent / "classes.json"),
            unusable=[row for shard in samples for row in shard.without_image],
        )


def _find_shards(shards: str) -> tuple[Path, list[Path]]:
    """Return the folder that ids are relative to, and the shards."""
    path = Path(shards)
    if path.is_dir():
        files = sorted(path.glob("*.tar"))
        if not files:
            raise DataError(
                f"no shard in {path}: got {sum(1 for _ in path.iterdir())} other entries; allowed are .tar files; "
                "correct the path, or open it as an image folder"
            )
        return path, files
    if path.is_file():
        return path.parent, [path]
    if not re.search(r"[*?\[{]", shards):
        raise DataError(
            f"cannot open shards {shards}: got nothing there; allowed is a folder, a .tar file or a pattern; "
            "correct the path"
        )
    found: set[Path] = set()
    for pattern in _expand_braces(shards):
        matches = [pattern] if Path(pattern).is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
        files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            raise DataError(
                f"cannot open shards {shards}: got no file for {pattern}; allowed are patterns that all exist; "
                "correct the pattern or fetch the missing shard"
            )
        found.update(files)
    plain = []
    for part in path.parts:
        if re.search(r"[*?\[{]", part):
            break
        plain.append(part)
    return Path(*plain), sorted(found)


def _expand_braces(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    body = match.group(1)
    numbers = _RANGE.fullmatch(body)
    if numbers is None:
        choices = body.split(",")
    else:
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        if not choices:
            raise DataError(
                f"cannot expand {pattern}: got {{{body}}}; allowed are ranges that go up; swap the two numbers"
            )
    for choice in choices:
        yield from _expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _samples(where: str, root: Path, files: Sequence[Path]) -> list[TarSamples]:
    """What the shards hold; those that are the same as at the last opening are not read again."""
    index = ShardIndex(where)
    found: dict[str, tuple[Known, TarSamples]] = {}
    is_new = False
    for file in files:
        name, known = file.relative_to(root).with_suffix("").as_posix(), known_by(file)
        samples = index.find(name, file, known)
        if samples is None:
            samples, is_new = read_samples(file, name), True
        found[name] = (known, samples)
    if is_new:
        index.keep(found)
    return [samples for _, samples in found.values()]


def _read_class_names(file: Path) -> tuple[str, ...]:
    if not file.exists():
        return ()
    wrong = DataError(
        f"cannot read class names from {file}: got something else; allowed is a list of names, or an object "
        'from the indices "0", "1", ... to names; correct the file'
    )
    try:
        content = json.loads(read_text(file.read_bytes(), str(file)))
    except json.JSONDecodeError as error:
        raise wrong from error
    entries: Sequence[object] = content if isinstance(content, list) else ()
    if isinstance(content, dict):
        entries = [content.get(str(index)) for index in range(len(content))]
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    strings = tuple(name for name in names if isinstance(name, str))
    if not strings or len(strings) < len(names):
        raise wrong
    return strings
