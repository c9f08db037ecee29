"""Interpolation: enlarging without any weights, what every network has to beat."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from davae.core.pixels import enlarge, uint8_to_unit, unit_to_uint8
from davae.models.chunking import PIXELS_AT_ONCE
from davae.sampling.upscaling.upscaler import Size


@dataclass(frozen=True)
class Filter:
    """An `Upscaler` by interpolation, pixel centres aligned.

    Args:
        name: of the filter.
        kernel: what it is, exactly.
        enlarged: uint8 [N, 3, h, w] and a size -> uint8 [N, 3, *size].
    """

    name: str
    kernel: str
    enlarged: Callable[[Tensor, Size], Tensor]
    scale = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Upscaler`."""
        return {"upscaler": self.name, "kernel": self.kernel}

    def images_at_once(self, size: Size) -> int:
        """See `Upscaler`."""
        return max(1, PIXELS_AT_ONCE // (size[0] * size[1]))

    def __call__(self, images: Tensor, size: Size) -> Tensor:
        """See `Upscaler`."""
        return self.enlarged(images, size)


def _interpolated(images: Tensor, size: Size, **how: Any) -> Tensor:
    return unit_to_uint8(F.interpolate(uint8_to_unit(images), size=size, align_corners=False, **how))


def _bicubic(images: Tensor, size: Size) -> Tensor:
    return unit_to_uint8(enlarge(uint8_to_unit(images), size))


def _lanczos(images: Tensor, size: Size) -> Tensor:
    large = [
        np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.LANCZOS))
        for image in images.cpu()
    ]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).contiguous()


# With antialiasing torch has the kernel and the borders of Pillow, also where an image grows.
_catmull_rom = partial(_interpolated, mode="bicubic", antialias=True)

FILTERS: Final = {
    item.name: item
    for item in (
        Filter("bilinear", "two pixels a side", partial(_interpolated, mode="bilinear")),
        Filter("bicubic", "four pixels a side, a = -0.75: the library's own enlargement", _bicubic),
        Filter("catmull-rom", "four pixels a side, a = -0.5: bicubic in Pillow and MATLAB", _catmull_rom),
        Filter("lanczos", "six pixels a side, by Pillow in 8 bits", _lanczos),
    )
}
