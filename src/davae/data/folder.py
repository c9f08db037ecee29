"""A folder of image files as an `ImageSource`, with the layouts people have on disk.

Classes: first-level sub-folders, as torchvision's ImageFolder. Captions: `metadata.jsonl` or `metadata.csv`, as
Hugging Face's imagefolder, or a file beside each image, as the LoRA trainers.
"""

import posixpath
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from davae.data.decode import IMAGE_SUFFIXES, PREFIX, begins_as_image
from davae.data.errors import DataError
from davae.data.folder_metadata import read_metadata, read_sidecars
from davae.data.image_source import FileSource
from davae.data.records import Record
from davae.data.walk import File, walk

CaptionsFrom = Literal["auto", "none"]

_OTHER_DATA = {
    **dict.fromkeys(
        (".heic", ".heif", ".jxl", ".svg", ".psd", ".eps", ".pdf", ".exr", ".hdr", ".tga", ".ico"), "image"
    ),
    **dict.fromkeys((".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"), "camera file"),
    **dict.fromkeys((".mp4", ".mov", ".webm", ".mkv", ".avi", ".gifv"), "film"),
    **dict.fromkeys((".npy", ".npz", ".h5", ".lmdb"), "array"),
    **dict.fromkeys((".parquet", ".arrow", ".tfrecord", ".feather"), "table"),
    **dict.fromkeys((".zip", ".rar", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".tar"), "archive"),
}
"""Suffixes of what may hold images and is not opened here."""
_ADVICE = {"archive": "unpack it, or open .tar files as shards", "table": "write its images to files"}


class FolderSource(FileSource):
    """All images under a folder; an image's id is its path relative to that folder.

    A file is an image where its suffix is one of Pillow's, or, without a suffix, where it begins as one; which kind,
    the contents decide. With `metadata.jsonl` or `metadata.csv`, in the root or beside images, the images below it
    are those that it lists: `file_name`, and optionally `text` (or `caption`, `prompt`; in JSON also a list of
    several) and an integer `label`. Other images have the caption in the `.txt`, `.caption` or `.json` of their name.
    Without metadata, first-level sub-folders are the classes (sorted by name) unless an image lies in the root
    itself. Names with a leading dot are ignored.
    """

    def __init__(self, path: str | Path, min_side: int, captions_from: CaptionsFrom = "auto") -> None:
        """Find and check the images.

        Args:
            path: The folder.
            min_side: Shortest side in pixels that an image may have; smaller ones are skipped.
            captions_from: `auto` takes metadata files and side-cars where there are any; `none` passes over both and
                takes every image.

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
        tree = walk(root)
        records = {name: _record(name, file) for name, file in tree.files.items() if _is_image(name, file)}
        excluded = _other_data(tree.files)
        if not records:
            raise _no_image(root, tree.files, excluded)
        listing = read_metadata(tree.files, records) if captions_from == "auto" else None
        class_names: tuple[str, ...] = ()
        missing: list[tuple[str, str]] = []
        if listing is None:
            records, class_names = _with_classes(records)
        else:
            missing, excluded = listing.missing, [*excluded, *listing.unlisted]
            for name, _ in listing.unlisted:
                del records[name]
            for name, (captions, label) in listing.entries.items():
                records[name] = replace(records[name], captions=captions, label=label)
        if captions_from == "auto":
            listed = set() if listing is None else listing.entries.keys()
            for name, captions in read_sidecars(tree.files, [name for name in records if name not in listed]).items():
                records[name] = replace(records[name], captions=captions)
        super().__init__(
            str(root),
            records.values(),
            min_side=min_side,
            class_names=class_names,
            unusable=missing,
            excluded=[*tree.refused, *excluded],
        )


def _is_image(name: str, file: File) -> bool:
    suffix = posixpath.splitext(name)[1].lower()
    if suffix:
        return suffix in IMAGE_SUFFIXES
    try:
        with Path(file.path).open("rb") as stream:
            return begins_as_image(stream.read(PREFIX))
    except OSError:
        return False


def _record(name: str, file: File) -> Record:
    return Record(name, file.path, 0, file.size, file.stamp)


def _other_data(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, reason) of files that look like data and are not opened."""
    found = []
    for name in names:
        suffix = posixpath.splitext(name)[1].lower()
        if kind := _OTHER_DATA.get(suffix):
            advice = _ADVICE.get(kind, "convert it to PNG or JPEG")
            found.append((name, f"a {suffix} file, which is not opened; {advice}"))
    return found


def _no_image(root: Path, names: Iterable[str], other: list[tuple[str, str]]) -> DataError:
    suffixes = sorted({posixpath.splitext(name)[1].lower() for name, _ in other})
    among = f", {' '.join(suffixes)} among them" if suffixes else ""
    return DataError(
        f"no image in {root}: got {sum(1 for _ in names)} other files{among}; "
        f"allowed are {' '.join(IMAGE_SUFFIXES)}; correct the path"
        + (", or open the .tar files as shards" if ".tar" in suffixes else "")
    )


def _with_classes(records: dict[str, Record]) -> tuple[dict[str, Record], tuple[str, ...]]:
    folders = {name.partition("/")[0] for name in records if "/" in name}
    if any("/" not in name for name in records):
        return records, ()
    # Before the check, so that a class keeps its number when all its images turn out unusable.
    names = tuple(sorted(folders))
    labels = {name: label for label, name in enumerate(names)}
    return {name: replace(record, label=labels[name.partition("/")[0]]) for name, record in records.items()}, names
