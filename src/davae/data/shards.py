"""Tar shards in the WebDataset layout as an `ImageSource`.

Members that share a key are one sample: `key.jpg` with `key.cls`, `key.txt` or `key.json`. The tar headers are
read once; images are then read at random by offset. The order is that of the shards, which reads fastest.
"""

import glob
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from davae.data.annotations import captions_of, parse_captions, parse_label, read_text
from davae.data.errors import DataError
from davae.data.image_source import FileSource, Record

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_NOTE_EXTENSIONS = ("cls", "txt", "json")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # the extension starts at the first dot, as in webdataset
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BLOCK = 512

_Members = dict[str, tarfile.TarInfo]  # extension -> member


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
        without_image: list[tuple[str, str]] = []
        records = [record for file in files for record in _index(file, root, without_image)]
        names = _read_class_names(files[0].parent / "classes.json")
        super().__init__(str(shards), records, min_side=min_side, class_names=names, unusable=without_image)


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


def _index(file: Path, root: Path, without_image: list[tuple[str, str]]) -> Iterator[Record]:
    shard = file.relative_to(root).with_suffix("").as_posix()
    stamp = file.stat().st_mtime_ns
    samples: dict[str, _Members] = {}
    for member in _read_headers(file):
        match = _MEMBER.fullmatch(member.name.removeprefix("./"))
        if match is None or not member.isreg():
            continue
        key, extension = match.group(1), match.group(2).lower()
        members = samples.setdefault(key, {})
        if extension in members:
            raise DataError(
                f"shard {file} has two samples with one key: got {member.name} twice; allowed are unique keys; "
                "write the shard again"
            )
        members[extension] = member
    for key, members in samples.items():
        record = _record(f"{shard}/{key}", file, stamp, members)
        if record is None:
            without_image.append((f"{shard}/{key}", f"no image: only .{' .'.join(members)}"))
        else:
            yield record


def _read_headers(file: Path) -> list[tarfile.TarInfo]:
    """Return the members; refuse a shard that stops early, which `tarfile` would take for its end."""
    num_bytes = file.stat().st_size
    members: list[tarfile.TarInfo] = []
    end, problem = 0, "it is empty"
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                padded = -(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0
                if member.offset_data + padded > num_bytes:
                    break
                members.append(member)
                end = member.offset_data + padded
        with file.open("rb") as stream:
            stream.seek(end)
            if stream.read(_BLOCK) == bytes(_BLOCK):  # a tar ends with blocks of zeros
                return members
        problem = f"it has {num_bytes} bytes and no end mark after byte {end}"
    except tarfile.ReadError as error:
        problem = str(error)
    if members:
        raise DataError(
            f"shard {file} is truncated or damaged: got {problem}; the last whole member is "
            f"{members[-1].name}, number {len(members)}; allowed are complete tar files; "
            "fetch or write the shard again"
        )
    raise DataError(
        f"shard {file} cannot be read: got {problem}; no member is whole; allowed are complete, uncompressed tar "
        "files; fetch it again, or unpack it if it is compressed"
    )


def _record(name: str, file: Path, stamp: int, members: _Members) -> Record | None:
    images = [members[extension] for extension in _IMAGE_EXTENSIONS if extension in members]
    if not images:
        return None
    if len(images) > 1:
        raise DataError(
            f"sample {name} of {file} has several images: got {', '.join(image.name for image in images)}; "
            "allowed is one per key; write the shard again"
        )
    notes = _read_notes(name, file, members)
    entry = _parse_json(notes["json"], f"{name}.json") if "json" in notes else {}
    captions = captions_of(notes["txt"]) if "txt" in notes else parse_captions(entry, f"{name}.json")
    label = parse_label(notes.get("cls", entry.get("label")), f"the label of {name}")
    return Record(name, str(file), images[0].offset_data, images[0].size, stamp, label, captions)


def _read_notes(name: str, file: Path, members: _Members) -> dict[str, str]:
    notes = {}
    with file.open("rb") as stream:
        for extension in _NOTE_EXTENSIONS:
            if extension in members:
                stream.seek(members[extension].offset_data)
                notes[extension] = read_text(stream.read(members[extension].size), f"{name}.{extension}")
    return notes


def _parse_json(text: str, where: str) -> dict[str, object]:
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"cannot read {where}: got {error}; allowed is a JSON object; correct the file") from error
    if not isinstance(entry, dict):
        raise DataError(f"cannot read {where}: got {text[:80]!r}; allowed is a JSON object; correct the file")
    return entry


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
