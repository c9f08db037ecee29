"""Aspect-ratio buckets: images keep their shape, and each is brought to the nearest of a few sizes.

All sizes have about the same area, so that a batch of any of them costs about the same.
"""

import math
from collections.abc import Sequence

Size = tuple[int, int]
"""(height, width), pixels."""


def bucket_sizes(image_size: int, unit: int, max_ratio: float = 2.0) -> tuple[Size, ...]:
    """Sizes of about image_size^2 pixels, from the widest to the tallest; the square is one of them.

    For every longer side that is a multiple of `unit`, the shorter one is the multiple that comes nearest to the
    area. So the area differs from the square's by half a unit along the longer side at most.

    Args:
        image_size: side of the square, a multiple of `unit`.
        unit: sides are multiples of it: pixels a latent position stands for, times the transformer's patch.
        max_ratio: longest side to shortest, at least 1; 1 gives the square alone.

    Raises:
        ValueError: the image size is no multiple of the unit, or the ratio is below 1.
    """
    if unit < 1 or image_size < 1 or image_size % unit:
        raise ValueError(
            f"No buckets for image_size {image_size} in units of {unit} pixels; allowed are positive multiples of "
            f"the unit. Round image_size to one."
        )
    if not 1 <= max_ratio < math.inf:
        raise ValueError(
            f"No buckets up to ratio {max_ratio}; allowed are 1 (squares) and more. Use 2 for 1:2 to 2:1."
        )
    tall = [(image_size, image_size)]
    while True:
        longer = tall[-1][0] + unit
        shorter = round(image_size**2 / longer / unit) * unit
        if shorter == 0 or longer > max_ratio * shorter:
            break
        tall.append((longer, shorter))
    wide = [(width, height) for height, width in reversed(tall[1:])]
    return (*wide, *tall)


def assign(sizes: Sequence[Size], buckets: Sequence[Size]) -> list[int | None]:
    """The bucket of each image: the one that crops least of it, among those that it fills without being enlarged.

    Args:
        sizes: of the images as they are shown.
        buckets: to choose from.

    Returns:
        An index into `buckets` for each image; None where it fills none of them.
    """
    nearest = {size: _nearest(size, buckets) for size in set(sizes)}
    return [nearest[size] for size in sizes]


def _nearest(size: Size, buckets: Sequence[Size]) -> int | None:
    height, width = size
    filled = [index for index, (tall, wide) in enumerate(buckets) if tall <= height and wide <= width]

    def cropped(index: int) -> tuple[float, int]:
        tall, wide = buckets[index]
        return abs(math.log(height * wide / (width * tall))), -tall * wide  # equal shapes: the larger one

    return min(filled, key=cropped) if filled else None
