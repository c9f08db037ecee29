"""Owner of the resizes by which published evaluators bring an image to their network's size.

They differ in where a pixel of the result looks, and in whether shrinking averages; a Frechet distance moves more by
that than by anything else in an evaluator. Images are [H, W, 3] of 0..255, uint8 or float32.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Image8 = NDArray[np.uint8]
Pixels = NDArray[np.float32]
_GREY = np.float32(128)
Protocol = Literal["adm", "pytorch-fid", "clean"]

PROTOCOLS: dict[Protocol, str] = {
    "adm": "TensorFlow 1 bilinear to 299 px (source coordinate = target x in / out, no antialias), (x - 128) / 128",
    "pytorch-fid": "bilinear to 299 px on half-pixel centres, no antialias, 2 x / 255 - 1",
    "clean": "PIL bicubic to 299 px a channel in float32 (antialiased), clipped and not rounded, (x - 128) / 128",
}
"""The named preprocessings of the Inception family."""


def preprocess(image: NDArray[Any], protocol: Protocol, side: int) -> Pixels:
    """An image as a protocol hands it to the Inception network: float32 [3, side, side].

    Raises:
        ValueError: the protocol is unknown.
    """
    if protocol == "adm":
        return (tensorflow_bilinear(image, side, side) - _GREY) / _GREY
    if protocol == "pytorch-fid":
        return torch_bilinear(image, side, side) * np.float32(2 / 255) - 1
    if protocol == "clean":
        return (pil_bicubic(image, side, side) - _GREY) / _GREY
    raise ValueError(f"Unknown protocol {protocol!r}; allowed are {', '.join(get_args(Protocol))}.")


def tensorflow_bilinear(image: NDArray[Any], height: int, width: int) -> Pixels:
    """As TensorFlow 1 resizes by default: float32 [3, height, width] of 0..255."""
    return _bilinear(
        image, *(_coordinates(n, out, 0.0) for n, out in zip(image.shape, (height, width), strict=False))
    )


def torch_bilinear(image: NDArray[Any], height: int, width: int) -> Pixels:
    """As `interpolate(mode="bilinear", align_corners=False)`: float32 [3, height, width] of 0..255."""
    return _bilinear(
        image, *(_coordinates(n, out, 0.5) for n, out in zip(image.shape, (height, width), strict=False))
    )


def pil_bicubic(image: NDArray[Any], height: int, width: int) -> Pixels:
    """Each channel as a float image of its own, clipped: float32 [3, height, width] of 0..255."""
    channels = np.ascontiguousarray(np.moveaxis(image, 2, 0), dtype=np.float32)
    resized = [
        np.asarray(Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)) for channel in channels
    ]
    return np.stack(resized).clip(0, 255)


def _coordinates(size: int, out: int, centre: float) -> Pixels:
    """Where the pixels of the result look, in pixels of the source; float32, as the references have it."""
    scale = np.float32(size) / np.float32(out)
    return ((np.arange(out, dtype=np.float32) + np.float32(centre)) * scale - np.float32(centre)).clip(min=0)


def _bilinear(image: NDArray[Any], rows: Pixels, columns: Pixels) -> Pixels:
    """Only the four neighbours of each pixel of the result become floats."""
    channels = image.shape[2]
    top, bottom, down = _neighbours(rows, image.shape[0])
    left, right, across = _neighbours(np.tile(columns, channels), image.shape[1])  # a channel after the other
    upper, lower = (image[index].reshape(len(rows), -1) for index in (top, bottom))

    def between(column: NDArray[np.intp]) -> Pixels:
        places = column * channels + np.arange(channels).repeat(len(columns))
        above, below = (line.take(places, axis=1).astype(np.float32) for line in (upper, lower))
        below -= above
        below *= down[:, None]
        above += below
        return above

    near, far = between(left), between(right)
    far -= near
    far *= across
    near += far
    return np.ascontiguousarray(near.reshape(len(rows), channels, len(columns)).transpose(1, 0, 2))


def _neighbours(coordinates: Pixels, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Pixels]:
    """Both pixels between which a coordinate lies, and how far it is on the way."""
    low = np.floor(coordinates).astype(np.intp)
    return low, np.minimum(low + 1, size - 1), coordinates - low.astype(np.float32)
