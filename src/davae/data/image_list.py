"""Images as they are, to be judged: a folder, tar shards or an npz; no crop, no resize, in a fixed order.

Folders are in the order of their paths, shards in their own, an npz in that of `arr_0`, which is the order that
guided-diffusion's evaluator splits by.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.core.state import found_json
from davae.data.buckets import Size
from davae.data.decode import UnusableImage, decode_image
from davae.data.drawn_folder import ENLARGED, is_beside, name_beside
from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.image_source import FileSource
from davae.data.npz import array_names, read_array
from davae.data.shard_paths import is_pattern
from davae.data.shards import ShardSource

Pixels = NDArray[np.uint8]
"""[H, W, 3] of 0..255."""
ARRAY = "arr_0"
"""Name of the images in an npz."""


class ImageList(ABC):
    """Images with a name each. Reading and decoding are apart, so that contents can be compared without pixels.

    Attributes:
        where: path of the set.
        ids: names, in order.
        sizes: (height, width) of each.
        captions: what each is of, as tar shards say it; "" where nothing does.
        skipped: (name, reason) of files that are no usable image.
        unusable: those of them that are images, or should be.
        enlarged: what enlarged them, as JSON values, where `davae upscale` says so in the folder.
    """

    where: str
    ids: Sequence[str]
    sizes: Sequence[Size]
    captions: Sequence[str]
    skipped: Sequence[tuple[str, str]]
    unusable: Sequence[tuple[str, str]]
    enlarged: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """The stored bytes of an image: equal ones are equal images."""

    @abstractmethod
    def decode(self, index: int, content: bytes) -> Pixels:
        """The image of stored bytes.

        Raises:
            DataError: they are not those that were there when the set was opened.
        """


class FileImages(ImageList):
    """Image files, in a folder or in tar shards.

    Args:
        source: that has found them.
        where: its path.
        kind: of what a folder has beside its images, to be taken in their place; empty takes the images.

    Raises:
        DataError: nothing of that kind stands beside an image.
    """

    def __init__(self, source: FileSource, where: Path, kind: str = "") -> None:
        numbers = {name: i for i, name in enumerate(source.ids)}
        names = [name for name in numbers if not is_beside(name, numbers, where)]
        if kind:
            names = [name_beside(name, kind) for name in names]
            if absent := next((name for name in names if name not in numbers), None):
                raise DataError(f"no {kind} in {where}: {absent} is not there; draw the images with --{kind}")
        kept, records = [numbers[name] for name in names], source.records
        self.where, self.ids = str(where), names
        self.sizes = [source.sizes[i] for i in kept]
        self.captions = [source.captions[i] for i in kept]
        self.skipped, self.unusable = source.skipped, source.unusable
        self._records = [records[i] for i in kept]
        made_by = found_json(where / ENLARGED, dict[str, Any]) if where.is_dir() else None
        if made_by is not None:
            self.enlarged = {"upscaler": made_by.get("upscaler"), "size": made_by.get("size")}

    def content(self, index: int) -> bytes:
        """See `ImageList`."""
        try:
            return self._records[index].read()
        except OSError as error:
            raise DataError(
                f"cannot read image {self.ids[index]} of {self.where}: got {error}; allowed are the files that were "
                "there when the set was opened; restore it or start again"
            ) from error

    def decode(self, index: int, content: bytes) -> Pixels:
        """See `ImageList`."""
        try:
            return np.array(decode_image(content, self.ids[index]))
        except UnusableImage as error:
            raise DataError(
                f"cannot load image {self.ids[index]} of {self.where}: got {error}; allowed are the bytes that were "
                "there when the set was opened; restore it or start again"
            ) from error


class ArrayImages(ImageList):
    """Images in one array, uint8 [N, H, W, 3]."""

    def __init__(self, images: Pixels, where: str) -> None:
        """Check the array.

        Raises:
            DataError: it is of another shape or type, or empty.
        """
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
            raise DataError(
                f"cannot judge the images of {where}: got {images.dtype} {list(images.shape)}; allowed is uint8 "
                "[N, H, W, 3]; write them so, with values of 0 to 255"
            )
        self.where, self.skipped, self.unusable = where, (), ()
        self.ids = [f"{i:06d}" for i in range(len(images))]
        self.captions = [""] * len(images)
        self.sizes = [(images.shape[1], images.shape[2])] * len(images)
        self._images = images

    def content(self, index: int) -> bytes:
        """See `ImageList`."""
        return self._images[index].tobytes()

    def decode(self, index: int, content: bytes) -> Pixels:
        """See `ImageList`."""
        return np.frombuffer(content, np.uint8).reshape(self._images.shape[1:])


def open_images(path: str | Path, kind: str = "") -> ImageList:
    """The images of a folder, of tar shards (a folder of them, a `.tar`, a pattern), or of an npz.

    Args:
        path: where they are.
        kind: "baseline" or "preview" takes what `davae generate` drew beside each image; empty takes the images.

    Raises:
        DataError: there are none, or they cannot be used; the text says why.
    """
    place = Path(path)
    if not place.exists() and not is_pattern(place):
        raise DataError(
            f"there is nothing at {place}: allowed is a folder of images, tar shards, or an npz; correct it"
        )
    if place.suffix == ".npz" and place.is_file():
        if ARRAY not in array_names(place):
            raise DataError(f"{place} holds no images: got no array {ARRAY!r}; allowed is an npz that has one")
        if kind:
            raise DataError(f"no {kind} in {place}: an npz has images alone; give what 'davae generate' drew")
        return ArrayImages(read_array(place, ARRAY), str(place))
    if place.is_dir() and not any(place.glob("*.tar")):
        return FileImages(FolderSource(place, min_side=1, captions_from="none"), place, kind)
    return FileImages(ShardSource(path, min_side=1, kind=kind), place)
