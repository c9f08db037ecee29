"""From the bytes of an image file to 8-bit RGB, and from there to a tensor of a given size.

Owns what "usable" means: readable to the last row, and large enough that it never has to be enlarged. Colour
profiles are not applied, as in the training sets of the pretrained pairs.
"""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from davae.data.buckets import Size

Image.init()  # opening by name finds only formats whose plug-in is loaded
# Bytes. Blocks of large images are then mapped and go back to the system, where smaller ones stay with every thread.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]

# Named, so that a file cannot reach the plug-ins that start other programs (EPS) whatever its suffix says. All of
# these know their files by the first bytes: the contents of a file decide its format.
_FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "DIB")
    if name in Image.OPEN  # older versions of Pillow have no AVIF
)
_SUFFIXES = {suffix for suffix, name in Image.registered_extensions().items() if name in (*_FORMATS, "MPO")}
IMAGE_SUFFIXES = tuple(sorted(_SUFFIXES | {".jif"}))
"""Of files that are taken for images, in small letters, with their dots."""

PREFIX = 32
"""Bytes by which a format is known."""

_LARGE = 40_000_000  # pixels
_large_turn = threading.Lock()

# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)  # stored with rows and columns exchanged


class UnusableImage(ValueError):
    """An image that cannot be part of a data set, with its `name` and the `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both in args, so that it survives pickling between processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image file to upright 8-bit RGB.

    Transparent pixels are laid over white, 16-bit values are scaled (not clipped), EXIF orientation is applied,
    and of an animation the first frame is taken.

    Args:
        data: The whole file.
        name: What to call it in errors.

    Raises:
        UnusableImage: It is truncated, or no image, or its values have no 8-bit meaning.
    """
    with _opened(data, name) as image, _turn_of(image):
        return _upright(image, data, name)


def decode_cropped(data: bytes, name: str, size: int | Size) -> Tensor:
    """Decode an image file and crop it, see `decode_image` and `center_crop_resize`.

    Of large images, of which a file of a few kilobytes can make gigabytes, threads do this one at a time.

    Raises:
        UnusableImage: It cannot be decoded.
        ValueError: It would have to be enlarged.
    """
    with _opened(data, name) as image, _turn_of(image):
        return center_crop_resize(_upright(image, data, name), size)


def begins_as_image(data: bytes) -> bool:
    """Whether the first `PREFIX` bytes of a file are those of an image format."""
    prefix = data[:PREFIX].ljust(PREFIX, b"\0")
    marks = (Image.OPEN[name][1] for name in _FORMATS)
    return any(mark is not None and mark(prefix) is True for mark in marks)


def check_image(data: bytes, name: str, min_side: int) -> Size:
    """Check that `decode_image` will work and that the shorter side has `min_side` pixels, cheaply.

    Returns:
        (height, width) of what `decode_image` gives, which is upright.

    Raises:
        UnusableImage: It is truncated, unreadable or too small.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if min(width, height) < min_side:
                raise UnusableImage(name, f"too small: {width}x{height}, the shorter side needs {min_side}")
            if image.format in ("JPEG", "MPO"):
                # At an eighth of the size the whole entropy stream is read, but hardly any pixel is computed.
                image.draft("L", (max(width // 8, 1), max(height // 8, 1)))
                image.load()
                return (width, height) if _orientation(image) in _LYING else (height, width)
    except UnusableImage:
        raise
    except _DECODER_ERRORS as error:
        raise UnusableImage(name, _reason(data, error)) from error
    width, height = decode_image(data, name).size
    return height, width


def center_crop_resize(image: Image.Image, size: int | Size) -> Tensor:
    """Shrink until the image just fills `size`, then crop the centre (for squares, the protocol of ADM).

    Args:
        image: RGB.
        size: Of the result in pixels, (height, width) or the side of a square; the image has at least these.

    Returns:
        uint8 [3, height, width] in [0, 255].

    Raises:
        ValueError: The image would have to be enlarged.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= width <= image.width and 1 <= height <= image.height):
        raise ValueError(
            f"cannot crop to {width}x{height}: got an image of {image.width}x{image.height}; allowed are sides from "
            f"1 to those of the image, which is never enlarged; ask for a smaller size or set a larger min_side"
        )
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except _DECODER_ERRORS as error:
        raise UnusableImage(name, _reason(data, error)) from error


def _upright(image: Image.Image, data: bytes, name: str) -> Image.Image:
    try:
        image.load()
        orientation = _orientation(image)  # after load(): PNG may store it last, TIFF rotates itself
        rgb = _to_rgb(image)
    except _DECODER_ERRORS as error:
        raise UnusableImage(name, _reason(data, error)) from error
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


@contextmanager
def _turn_of(image: Image.Image) -> Iterator[None]:
    """Wait until no other thread has a large image at work, where this one is large."""
    if image.width * image.height < _LARGE:
        yield
        return
    with _large_turn:
        yield


def _orientation(image: Image.Image) -> int | None:
    orientation: int | None = image.getexif().get(_ORIENTATION_TAG)
    return orientation


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips at 255. "I" is what it makes of some 16-bit files, too.
    values = np.asarray(image)
    low, high = values.min(), values.max()
    allowed = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= allowed):  # NaN fails this as well
        raise ValueError(f"values from {low} to {high} in mode {image.mode}, allowed 0 to {allowed}")
    if image.mode == "F":
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _reason(data: bytes, error: BaseException) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image ({', '.join(_FORMATS)}), or cut off in its header"
    if isinstance(error, MemoryError):
        return "unreadable: it does not fit into memory"
    return f"unreadable: {error}"
