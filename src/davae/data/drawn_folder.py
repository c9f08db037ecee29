"""What lies in a folder of drawn images, by its name: which files are images, which only stand beside them."""

import re
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Final

GRID: Final = "grid.png"
"""A picture of the first images."""
ALBUM, STORE, ENLARGED = "generation.json", "inputs.json", "upscale.json"
"""What says of which settings a folder's images are: written by `davae generate`, by a run, by `davae upscale`."""
_BESIDE = re.compile(r"(.*\d{6,})-(?:preview|baseline)(\.\w+)")


def is_beside(name: str, names: Container[str], folder: Path) -> bool:
    """Whether a file is no image of the set: a preview or a baseline beside the image of its number, or a grid.

    Args:
        name: inside the folder, with slashes.
        names: of all files.
        folder: where they lie.
    """
    if PurePosixPath(name).name == GRID:
        return any((folder / name).with_name(marker).exists() for marker in (ALBUM, STORE))
    match = _BESIDE.fullmatch(name)
    return match is not None and match[1] + match[2] in names


def name_beside(name: str, kind: str) -> str:
    """Name of what was drawn beside an image: `000000.png` -> `000000-baseline.png`."""
    path = PurePosixPath(name)
    return str(path.with_stem(f"{path.stem}-{kind}"))


def number_of(name: str, kind: str = "") -> int | None:
    """Number of a drawn image, of whatever stands beside it, or of a sample in a shard; None where it has none."""
    stem = PurePosixPath(name).stem.removesuffix(kind and f"-{kind}")
    return int(stem) if stem.isdecimal() else None
