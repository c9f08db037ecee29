"""What enlarges images: the interface, and which sizes make sense."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

Size = tuple[int, int]
"""Height and width, pixels."""


class Upscaler(Protocol):
    """Makes images larger, all of a call from one size to another."""

    @property
    def name(self) -> str:
        """For tables."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that its images depend on beside the images given, as JSON values; of weights, their checksums."""

    @property
    def scale(self) -> int | None:
        """The one factor by which it enlarges a side; None where any size can be asked for."""

    def images_at_once(self, size: Size) -> int:
        """Images of this size that a call should bring at most."""

    def __call__(self, images: Tensor, size: Size) -> Tensor:
        """uint8 [N, 3, h, w] -> uint8 [N, 3, *size] on the CPU. `refusal` has no objection to the sizes."""


def refusal(upscaler: Upscaler, have: Size, want: Size) -> str | None:
    """Why images of this size cannot be brought to that one; None where they can."""
    (height, width), (to_height, to_width) = have, want
    if to_height < height or to_width < width or have == want:
        return f"{width}x{height} is no smaller than {to_width}x{to_height}: nothing to enlarge"
    scale = upscaler.scale
    if scale is not None and (height * scale < to_height or width * scale < to_width):
        return (
            f"{width}x{height} is too small: {upscaler.name} makes {width * scale}x{height * scale} of it, less than "
            f"{to_width}x{to_height}"
        )
    return None
