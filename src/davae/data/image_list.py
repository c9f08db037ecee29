"""Images as they are, to be judged: a folder, tar shards or an npz; no crop, no resize, in a fixed order.

Folders are in the order of their paths, shards in their own, an npz in that of `arr_0`, which is the order that
guided-diffusion's evaluator splits by.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from davae.data.buckets import Size
from davae.data.decode import UnusableImage, decode_image
from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.image_source import FileSource
from davae.data.npz import array_names, read_array
from davae.data.shards import ShardSource

Pixels = NDArray[np.uint8]
"""[H, W, 3] of 0..255."""
ARRAY = "arr_0"
"""Name of the images in an npz."""
_BESIDE = re.compile(r"(.*\d{6,})-(preview|baseline)\.\w+")  # what `davae generate` keeps beside an image


class ImageList(ABC):
    """Images with a name each. Reading and decoding are apart, so that contents can be compared without pixels.

    Attributes:
        where: path of the set.
        ids: names, in order.
        sizes: (height, width) of each.
        skipped: (name, reason) of files that are no usable image.
    """

    where: str
    ids: Sequence[str]
    sizes: Sequence[Size]
    skipped: Sequence[tuple[str, str]]

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
    """Image files, in a folder or in tar shards."""

    def __init__(self, source: FileSource, where: Path) -> None:
        names = set(source.ids)
        kept = [i for i, name in enumerate(source.ids) if not _is_beside(name, names)]
        self.where = str(where)
        self.ids = [source.ids[i] for i in kept]
        self.sizes = [source.sizes[i] for i in kept]
        self.skipped = source.skipped
        records = source.records
        self._records = [records[i] for i in kept]

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
        self.where, self.skipped = where, ()
        self.ids = [f"{i:06d}" for i in range(len(images))]
        self.sizes = [(images.shape[1], images.shape[2])] * len(images)
        self._images = images

    def content(self, index: int) -> bytes:
        """See `ImageList`."""
        return self._images[index].tobytes()

    def decode(self, index: int, content: bytes) -> Pixels:
        """See `ImageList`."""
        return np.frombuffer(content, np.uint8).reshape(self._images.shape[1:])


def open_images(path: str | Path) -> ImageList:
    """The images of a folder, of tar shards (a folder of them, a `.tar`, a pattern), or of an npz.

    Raises:
        DataError: there are none, or they cannot be used; the text says why.
    """
    place = Path(path)
    if place.suffix == ".npz" and place.is_file():
        if ARRAY not in array_names(place):
            raise DataError(f"{place} holds no images: got no array {ARRAY!r}; allowed is an npz that has one")
        return ArrayImages(read_array(place, ARRAY), str(place))
    if place.is_dir() and not any(place.glob("*.tar")):
        return FileImages(FolderSource(place, min_side=1, captions_from="none"), place)
    return FileImages(ShardSource(path, min_side=1), place)


def _is_beside(name: str, names: set[str]) -> bool:
    """Whether a file is a preview or a baseline that stands beside the image of the same number."""
    match = _BESIDE.fullmatch(name)
    return match is not None and f"{match[1]}{Path(name).suffix}" in names
