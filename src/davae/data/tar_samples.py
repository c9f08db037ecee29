"""The samples of one tar shard, from its headers: where the images lie, and what is written beside them.

Members that share a key are one sample: `key.jpg` with `key.cls`, `key.txt` or `key.json`. A link to another member
is that member. Folders and what file managers leave behind (names with a leading dot, `__MACOSX`) are passed over.
"""

import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from davae.data.annotations import captions_of, parse_captions, parse_label, parse_object, read_text
from davae.data.decode import IMAGE_SUFFIXES
from davae.data.errors import DataError
from davae.data.records import Record, Records

_IMAGE_EXTENSIONS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
_NOTE_EXTENSIONS = ("cls", "txt", "json")
_NAME = re.compile(r"([^./]+)\.([^/]*)")  # the extension starts at the first dot, as in webdataset
_METADATA = re.compile(r"metadata\.(jsonl|csv|parquet)")
_BLOCK = 512
_READ_AT_ONCE = 1 << 20
# What damaged headers raise; a name of 2^62 bytes is too much for the memory.
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError)
_LONGEST_CHAIN = 8  # links to links

_Members = dict[str, tarfile.TarInfo]  # extension -> member


@dataclass(frozen=True)
class TarSamples:
    """What a shard holds.

    Args:
        records: of the samples, in the order of the shard.
        without_image: (id, reason) of samples that have none, or none that can be read in one piece.
    """

    records: Records
    without_image: Sequence[tuple[str, str]]


def read_samples(file: Path, name: str, kind: str = "") -> TarSamples:
    """Read the headers and the annotations of a shard.

    Args:
        file: an uncompressed tar.
        name: that its samples' ids begin with: "name/key".
        kind: "baseline" takes `key.baseline.png` in place of `key.png`; empty takes the image.

    Raises:
        DataError: it is damaged or truncated, two samples have one key, or an annotation is wrong.
    """
    stat = file.stat()
    members = _read_headers(file, stat.st_size)
    by_name = {posixpath.normpath(member.name): member for member in members if _is_file(member)}
    records: list[Record] = []
    without_image: list[tuple[str, str]] = []
    with file.open("rb") as stream:
        for key, parts in _samples(file, members).items():
            sample = f"{name}/{key}"
            image = _image(sample, file, parts, kind)
            found = _what_is_missing(parts) if image is None else _resolved(image, by_name)
            if isinstance(found, str):
                without_image.append((sample, found))
                continue
            captions, label = _annotations(sample, stream, parts, by_name)
            place = (str(file), found.offset_data, found.size, stat.st_mtime_ns)
            records.append(Record(sample, *place, label, captions, stat.st_size))
    return TarSamples(Records.of(records), tuple(without_image))


def _samples(file: Path, members: Sequence[tarfile.TarInfo]) -> dict[str, _Members]:
    """Key -> its members by extension."""
    samples: dict[str, _Members] = {}
    for member in members:
        folder, name = posixpath.split(posixpath.normpath(member.name))
        match = _NAME.fullmatch(name)
        if match is None or not _is_file(member) or _is_left_by_a_file_manager(folder):
            continue
        parts = samples.setdefault(posixpath.join(folder, match[1]), {})
        if parts.setdefault(match[2].lower(), member) is not member:
            raise DataError(
                f"shard {file} has two samples with one key: got {member.name} twice; allowed are unique keys; "
                "write the shard again"
            )
    return samples


def _is_file(member: tarfile.TarInfo) -> bool:
    """A file, or a link that may lead to one."""
    return member.isreg() or member.islnk() or member.issym()


def _is_left_by_a_file_manager(folder: str) -> bool:
    return any(part == "__MACOSX" or part.startswith(".") for part in folder.split("/") if part != "..")


def _image(sample: str, file: Path, parts: _Members, kind: str) -> tarfile.TarInfo | None:
    extensions = (f"{kind}.{extension}".lstrip(".") for extension in _IMAGE_EXTENSIONS)
    images = [parts[extension] for extension in extensions if extension in parts]
    if len(images) > 1:
        raise DataError(
            f"sample {sample} of {file} has several images: got {', '.join(image.name for image in images)}; "
            "allowed is one per key; write the shard again"
        )
    return images[0] if images else None


def _what_is_missing(parts: _Members) -> str:
    for member in parts.values():
        if _METADATA.fullmatch(posixpath.basename(member.name)):
            return f"no image: captions of a shard lie beside each image (KEY.txt, KEY.json), not in {member.name}"
    return f"no image: only .{' .'.join(parts)}"


def _resolved(member: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo | str:
    """The member that holds the bytes, or why there is none."""
    start = member
    for _ in range(_LONGEST_CHAIN):
        if member.isreg():
            return f"{member.name} is stored with holes (sparse); write it whole" if member.issparse() else member
        folder = posixpath.dirname(member.name) if member.issym() else ""
        target = by_name.get(posixpath.normpath(posixpath.join(folder, member.linkname)))
        if target is None:
            return f"no image: {start.name} is a link to {member.linkname}, which is no file of this shard"
        member = target
    return f"no image: {start.name} is a link that leads to no file"


def _annotations(
    sample: str, stream: BinaryIO, parts: _Members, by_name: Mapping[str, tarfile.TarInfo]
) -> tuple[tuple[str, ...], int | None]:
    """Captions and label of a sample."""
    notes = {}
    for extension in _NOTE_EXTENSIONS:
        if extension in parts:
            where, member = f"{sample}.{extension}", _resolved(parts[extension], by_name)
            if isinstance(member, str):
                raise DataError(f"cannot read {where}: got {member}; allowed is text; write the shard again")
            stream.seek(member.offset_data)
            notes[extension] = read_text(stream.read(member.size), where)
    entry = parse_object(notes["json"], f"{sample}.json") if "json" in notes else {}
    captions = captions_of(notes["txt"]) if "txt" in notes else parse_captions(entry, f"{sample}.json")
    return captions, parse_label(notes.get("cls", entry.get("label")), f"the label of {sample}")


def _read_headers(file: Path, num_bytes: int) -> list[tarfile.TarInfo]:
    """Return the members; refuse a shard that stops early, which `tarfile` would take for its end."""
    members: list[tarfile.TarInfo] = []
    end, problem = 0, "it is empty"
    try:
        with tarfile.open(file, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                if member.size < 0 or not end < tar.offset <= num_bytes:
                    break
                members.append(member)
                end = tar.offset
        problem = _what_follows(file, end, num_bytes)
        if not problem:
            return members
    except _DAMAGE as error:
        problem = str(error) or "a size that is too large"
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


def _what_follows(file: Path, end: int, num_bytes: int) -> str:
    """What is wrong after the last member: a tar ends with blocks of zeros and holds nothing after them."""
    with file.open("rb") as stream:
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            return f"it has {num_bytes} bytes and no end mark after byte {end}"
        while block := stream.read(_READ_AT_ONCE):
            if block.count(0) < len(block):
                return f"more bytes after its end mark at byte {end}, as where tars were put one after the other"
    return ""
