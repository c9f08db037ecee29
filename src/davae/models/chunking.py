"""How many images an autoencoder takes at once: its memory grows with their pixels."""

from collections.abc import Iterator

PIXELS_AT_ONCE = 4 * 1024**2
"""An activation of SD3's autoencoder takes 1 kB a pixel in fp32, and several are alive at a time."""


def images_at_once(height: int, width: int, limit: int) -> int:
    """Images of this size, in pixels, that fit into the budget: at least 1, at most `limit`."""
    return min(limit, max(PIXELS_AT_ONCE // (height * width), 1))


def chunks(count: int, size: int) -> Iterator[range]:
    """0 .. count - 1 in ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))
