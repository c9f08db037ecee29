"""Owner of pixel ranges: 8-bit images, unit range [0, 1], signed range [-1, 1], and how an image is enlarged.

Data sets and files hold uint8, autoencoders take and give the signed range, metrics compare the unit range.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's red, green and blue in the unit range, by which vision networks normalise."""


def uint8_to_signed(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [-1, 1], channels last.

    Convolutions and norms over channels then need no transposition, here and downstream.
    """
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def uint8_to_unit(images: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> float32 in [0, 1]."""
    return images.float() / 255


def unit_to_signed(images: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return images * 2 - 1


def signed_to_unit(images: Tensor) -> Tensor:
    """Nominally [-1, 1] -> float32 in [0, 1], clamped."""
    return (images.float() / 2 + 0.5).clamp(0, 1)


def unit_to_uint8(images: Tensor) -> Tensor:
    """[0, 1] -> uint8, clamped and rounded, on the CPU."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def enlarge(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images [B, K, H, W] at a larger size, float32: bicubic (a = -0.75), pixel centres aligned.

    The one enlargement of the library: the rows "base upsampled" of a run and the baseline beside generated images
    are made by it, before any rounding to 8 bits. `AutoencoderDA.preview` gives the same bits in float32.

    Args:
        images: of any range; bicubic overshoots it.
        size: (height, width), or the side of a square.
    """
    return F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False)
