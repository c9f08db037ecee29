"""How many images an autoencoder takes at once: its memory grows with their pixels."""

PIXELS_AT_ONCE = 4 * 1024**2
"""An activation of SD3's autoencoder takes 1 kB a pixel in fp32, and several are alive at a time."""


def images_at_once(height: int, width: int, limit: int) -> int:
    """Images of this size, in pixels, that fit into the budget: at least 1, at most `limit`."""
    return min(limit, max(PIXELS_AT_ONCE // (height * width), 1))
