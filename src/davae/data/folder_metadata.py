"""Captions and labels of a folder's images: metadata files that list images, and side-cars beside them.

Names match whatever their Unicode normalisation is: macOS stores "e" and its accent apart, and archives travel.
"""

import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from davae.data.annotations import (
    captions_of,
    json_lines,
    parse_captions,
    parse_label,
    parse_object,
    read_text,
    table_rows,
)
from davae.data.errors import DataError
from davae.data.walk import File

METADATA = ("metadata.jsonl", "metadata.csv")
"""Names of files that list images."""
SIDECARS = (".txt", ".caption", ".json")
"""Suffixes of files beside an image that say what it shows, the first that is there."""


@dataclass
class Listing:
    """What metadata files say.

    Attributes:
        entries: Image -> (captions, label).
        missing: (name, reason) of images that are listed and are not there.
        unlisted: (name, reason) of images beside or below a metadata file that does not list them.
    """

    entries: dict[str, tuple[tuple[str, ...], int | None]] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    unlisted: list[tuple[str, str]] = field(default_factory=list)


class Names:
    """Names by their composed form."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {unicodedata.normalize("NFC", name): name for name in names}

    def find(self, name: str) -> str | None:
        """The name as it is spelt on disk."""
        return self._names.get(unicodedata.normalize("NFC", name))


def read_metadata(files: Mapping[str, File], images: Iterable[str]) -> Listing | None:
    """What the metadata files of a folder say; None where there is none.

    A file speaks for the images of its own folder and of those below. Where several list an image, or a folder has
    two kinds, it is an error.

    Args:
        files: of the folder by name.
        images: those of them that are images.

    Raises:
        DataError: one is wrong.
    """
    listings = [name for name in files if posixpath.basename(name) in METADATA]
    if not listings:
        return None
    homes: dict[str, str] = {}
    for name in listings:
        home = posixpath.dirname(name)
        if home in homes:
            raise DataError(
                f"cannot tell which annotations hold: got {homes[home]} and {name}; allowed is one of them; remove "
                f"the other"
            )
        homes[home] = name
    listing, known = Listing(), Names(images)
    for name in listings:
        for where, entry in _rows(files[name], name):
            _add(listing, known, posixpath.dirname(name), name, where, entry)
    for image in images:
        speaker = next((homes[home] for home in _parents(image) if home in homes), None)
        if image not in listing.entries and speaker is not None:
            listing.unlisted.append((image, f"not listed in {speaker}"))
    return listing


def read_sidecars(files: Mapping[str, File], images: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Captions of the images that have a side-car: the whole `.txt` or `.caption`, or the captions in a `.json`.

    Raises:
        DataError: one is no UTF-8, or no JSON object.
    """
    known = Names(name for name in files if name.lower().endswith(SIDECARS))
    captions = {}
    for image in images:
        stem = posixpath.splitext(image)[0]
        beside = (known.find(stem + suffix) for suffix in SIDECARS)
        sidecar = next((name for name in beside if name is not None), None)
        if sidecar is not None:
            text = _read(files[sidecar])
            is_object = sidecar.lower().endswith(".json")
            captions[image] = parse_captions(parse_object(text, sidecar), sidecar) if is_object else captions_of(text)
    return captions


def _rows(file: File, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    text = _read(file)
    return table_rows(text, file.path) if name.endswith(".csv") else json_lines(text, file.path)


def _add(listing: Listing, known: Names, home: str, metadata: str, where: str, entry: Mapping[str, object]) -> None:
    given = entry.get("file_name")
    if not isinstance(given, str):
        raise DataError(
            f"cannot read {where}: got {str(dict(entry))[:80]}; allowed is an entry with a file_name; correct it"
        )
    name = posixpath.normpath(posixpath.join(home, given.strip()))
    name = known.find(name) or name
    if name in listing.entries:
        raise DataError(
            f"cannot read {where}: got {name} a second time; allowed is one entry per image, with a list of captions "
            f"where it has several; remove one"
        )
    annotations = parse_captions(entry, where), parse_label(entry.get("label"), where)
    if known.find(name) is None:
        line = where.rpartition(" ")[2]
        listing.missing.append((name, f"listed in {metadata} line {line}, but there is no such image"))
    else:
        listing.entries[name] = annotations


def _parents(name: str) -> Iterator[str]:
    """Folders that a file lies in, the nearest first."""
    while name:
        name = posixpath.dirname(name)
        yield name


def _read(file: File) -> str:
    try:
        return read_text(Path(file.path).read_bytes(), file.path)
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}; make it readable, or remove it") from error
