"""Enlarging by a network: in tiles where images are large, and reduced to the size asked for where it makes more."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.pixels import uint8_to_unit, unit_to_uint8
from davae.core.precision import dtype_name
from davae.models.tiling import run_tiled
from davae.sampling.upscaling.upscaler import Size

TILE, OVERLAP = 512, 32
"""Side of a tile, and what neighbours share, in pixels of the input."""
_PIXELS_AT_ONCE = TILE**2
RESIZE = "bicubic with antialiasing, where its scale makes more than is asked for"


@dataclass(frozen=True)
class NetworkUpscaler:
    """An `Upscaler` by a network.

    Args:
        name: see `Upscaler`.
        network: [B, 3, h, w] in [0, 1] -> [B, 3, scale * h, scale * w]; on `device`, in `dtype`.
        scale: see `Upscaler`.
        about: what it is, and the checksum of its weights.
        multiple: pixels that sides of its input have to be a multiple of.
        device: where it computes.
        dtype: in which precision.
        tile: side of a tile in pixels of the input; larger images are cut.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    scale: int
    about: Mapping[str, Any]
    multiple: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    tile: int = TILE

    @property
    def identity(self) -> Mapping[str, Any]:
        """See `Upscaler`."""
        how = {"scale": self.scale, "resize": RESIZE, "tile": self.tile, "overlap": OVERLAP}
        return {"upscaler": self.name, **self.about, **how, "dtype": dtype_name(self.dtype)}

    def images_at_once(self, size: Size) -> int:
        """See `Upscaler`."""
        return max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))

    @torch.inference_mode()
    def __call__(self, images: Tensor, size: Size) -> Tensor:
        """See `Upscaler`."""
        at_once = self.images_at_once((images.shape[-2], images.shape[-1]))
        return torch.cat([self._enlarged(part, size) for part in images.split(at_once)])

    def _enlarged(self, images: Tensor, size: Size) -> Tensor:
        height, width = images.shape[-2:]
        inputs = uint8_to_unit(images.to(self.device)).to(self.dtype)
        # Tiles begin at multiples of their stride, so that only what stands at the end has to be filled up.
        inputs = F.pad(inputs, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        if max(height, width) > self.tile:
            outputs = run_tiled(self.network, inputs, self.tile, OVERLAP)
        else:
            outputs = self.network(inputs)
        outputs = outputs[..., : height * self.scale, : width * self.scale].float()
        if outputs.shape[-2:] != size:
            outputs = F.interpolate(outputs, size=size, mode="bicubic", align_corners=False, antialias=True)
        return unit_to_uint8(outputs)
