"""A folder of image files as an `ImageSource`, with the layouts people have on disk.

Classes: first-level sub-folders, as torchvision's ImageFolder. Captions: `metadata.jsonl`, as Hugging Face's
imagefolder, or a `.txt` beside each image, as the LoRA trainers.
"""

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from davae.data.annotations import captions_of, parse_captions, parse_label, read_text
from davae.data.errors import DataError
from davae.data.image_source import FileSource
from davae.data.records import Record

CaptionsFrom = Literal["auto", "none"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_METADATA = "metadata.jsonl"


class FolderSource(FileSource):
    """All images under a folder; an image's id is its path relative to that folder.

    With `metadata.jsonl` (in the root, or beside the images) the set is what these files list: `file_name`, and
    optionally `text` (or `caption`, `prompt`) and an integer `label`. Without one, first-level sub-folders are
    the classes (sorted by name) unless an image lies in the root itself. Names with a leading dot are ignored.
    """

    def __init__(self, path: str | Path, min_side: int, captions_from: CaptionsFrom = "auto") -> None:
        """Find and check the images.

        Args:
            path: The folder.
            min_side: Shortest side in pixels that an image may have; smaller ones are skipped.
            captions_from: `auto` takes metadata.jsonl if there is one, else `.txt` side-cars where there are any;
                `none` passes over both and takes every image.

        Raises:
            DataError: There is no such folder, no usable image in it, or its annotations are wrong.
        """
        root = Path(path)
        if captions_from not in get_args(CaptionsFrom):
            allowed = ", ".join(get_args(CaptionsFrom))
            raise DataError(
                f"unknown captions_from: got {captions_from!r}; allowed are {allowed}; choose one of them"
            )
        if not root.is_dir():
            got = "a file" if root.exists() else "nothing"
            raise DataError(
                f"cannot open image folder {root}: got {got} there; allowed is a folder; correct the path"
            )
        files = [Path(entry).relative_to(root).as_posix() for entry in _walk(root, frozenset())]
        records = {
            name: _record(name, root / name) for name in sorted(files) if name.lower().endswith(IMAGE_SUFFIXES)
        }
        if not records:
            raise DataError(
                f"no image in {root}: got {len(files)} other files; allowed are {' '.join(IMAGE_SUFFIXES)}; "
                "correct the path"
                + (", or open the .tar files as shards" if any(n.endswith(".tar") for n in files) else "")
            )
        metadata = sorted(name for name in files if posixpath.basename(name) == _METADATA)
        missing: list[tuple[str, str]] = []
        unlisted: list[tuple[str, str]] = []
        class_names: tuple[str, ...] = ()
        if metadata and captions_from == "auto":
            listed, missing = _apply_metadata(root, metadata, records)
            unlisted = [(name, f"not listed in {_METADATA}") for name in records if name not in listed]
            records = listed
        else:
            records, class_names = _apply_classes(records)
            if captions_from == "auto":
                records = _apply_sidecars(root, set(files), records)
        super().__init__(
            str(root),
            records.values(),
            min_side=min_side,
            class_names=class_names,
            unusable=missing,
            excluded=unlisted,
        )


def _walk(folder: Path, parents: frozenset[str]) -> Iterator[str]:
    # Linked folders are followed (class folders often are links), unless they lead back to where we are.
    real = str(folder.resolve())
    if real in parents:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_dir():
            yield from _walk(Path(entry.path), parents | {real})
        else:
            yield entry.path


def _record(name: str, path: Path) -> Record:
    try:
        stat = path.stat()
    except OSError:
        return Record(name, str(path), 0, 0, 0)  # a dangling link: reading it will give the reason
    return Record(name, str(path), 0, stat.st_size, stat.st_mtime_ns)


def _apply_metadata(
    root: Path, metadata: list[str], records: dict[str, Record]
) -> tuple[dict[str, Record], list[tuple[str, str]]]:
    """Records of the listed images, and (name, reason) of those that are not there."""
    listed: dict[str, Record] = {}
    missing: list[tuple[str, str]] = []
    for file in metadata:
        lines = read_text((root / file).read_bytes(), str(root / file)).splitlines()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{root / file} line {number}"
            entry = _parse_line(line, where)
            name = posixpath.normpath(posixpath.join(posixpath.dirname(file), entry["file_name"]))
            if name in listed:
                raise DataError(
                    f"cannot read {where}: got {name} a second time; allowed is one entry per image; remove one"
                )
            captions, label = parse_captions(entry, where), parse_label(entry.get("label"), where)
            if name in records:
                listed[name] = replace(records[name], captions=captions, label=label)
            else:
                missing.append((name, f"listed in {file} line {number}, but there is no such image"))
    return dict(sorted(listed.items())), missing


def _parse_line(line: str, where: str) -> dict[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"cannot read {where}: got {error}; allowed is one JSON object per line; correct the line"
        ) from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DataError(
            f"cannot read {where}: got {line.strip()[:80]!r}; allowed is a JSON object with a file_name; "
            "correct the line"
        )
    return entry


def _apply_classes(records: dict[str, Record]) -> tuple[dict[str, Record], tuple[str, ...]]:
    folders = {name.partition("/")[0] for name in records if "/" in name}
    if any("/" not in name for name in records):
        return records, ()
    # Before the check, so that a class keeps its number when all its images turn out unusable.
    names = tuple(sorted(folders))
    labels = {name: label for label, name in enumerate(names)}
    return {name: replace(record, label=labels[name.partition("/")[0]]) for name, record in records.items()}, names


def _apply_sidecars(root: Path, files: set[str], records: dict[str, Record]) -> dict[str, Record]:
    captioned = dict(records)
    for name, record in records.items():
        sidecar = posixpath.splitext(name)[0] + ".txt"
        if sidecar in files:
            text = read_text((root / sidecar).read_bytes(), str(root / sidecar))
            captioned[name] = replace(record, captions=captions_of(text))
    return captioned
