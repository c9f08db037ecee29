"""PSNR and SSIM of an image against its original, one number per image.

Both take float images in [0, 1] or uint8 images and clamp floats to [0, 1] first, without rounding to
eight bits. The caller takes the mean over images: a mean of dB values, as the literature reports it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.pixels import uint8_to_unit
from davae.evaluate.metric import PairedMetric

_WINDOW = 11  # px, Wang et al. 2004
_SIGMA = 1.5  # px
_K1, _K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, in dB for a peak of 1.

    Args:
        a: images [N, C, H, W], float in [0, 1] (clamped) or uint8.
        b: images of the same shape; the two types may differ.

    Returns:
        float64 [N]; infinite where the two images are equal.
    """
    a, b = _pair(a, b, "PSNR")
    return -10 * (a - b).square().flatten(1).mean(dim=1, dtype=torch.float64).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair, at most 1 (Wang et al. 2004).

    Gaussian window of 11 px with sigma 1.5, valid convolution, data range 1, K1 0.01, K2 0.03, mean over
    channels and positions.

    Args:
        a: images [N, C, H, W] of at least 11x11 px, float in [0, 1] (clamped) or uint8.
        b: images of the same shape; the two types may differ.

    Returns:
        float64 [N].
    """
    a, b = _pair(a, b, "SSIM")
    if min(a.shape[-2:]) < _WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_WINDOW}x{_WINDOW} px; got {a.shape[-2]}x{a.shape[-1]}. "
            f"Compare at the full resolution."
        )
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a * mean_a
    var_b = _blur(b * b) - mean_b * mean_b
    cov = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _K1**2) / (mean_a * mean_a + mean_b * mean_b + _K1**2)
    structure = (2 * cov + _K2**2) / (var_a + var_b + _K2**2)
    return (luminance * structure).flatten(1).mean(dim=1, dtype=torch.float64)


PSNR = PairedMetric(
    "PSNR",
    psnr,
    "mean over images of each image's dB, float images clamped to [0, 1], no 8-bit rounding",
    "higher",
    "dB",
)
SSIM = PairedMetric("SSIM", ssim, "gaussian 11, sigma 1.5, valid convolution, mean over channels", "higher")


def _pair(a: Tensor, b: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"{what} compares images of one shape; got {tuple(a.shape)} and {tuple(b.shape)}, "
            f"expected [N, C, H, W] twice. Resize or crop before comparing."
        )
    return _unit_range(a, what), _unit_range(b, what)


def _unit_range(images: Tensor, what: str) -> Tensor:
    if images.dtype == torch.uint8:
        return uint8_to_unit(images)
    if images.is_floating_point():
        # Half precision cannot hold the small differences that a good reconstruction leaves.
        return images.float().clamp(0, 1)
    raise ValueError(f"{what} takes float images in [0, 1] or uint8 images; got {images.dtype}. Convert them first.")


def _blur(images: Tensor) -> Tensor:
    """Gaussian mean over each 11x11 window: [N, C, H, W] -> [N, C, H - 10, W - 10]."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).to(images)
    channels = images.shape[1]
    column = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    row = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    return F.conv2d(F.conv2d(images, column, groups=channels), row, groups=channels)
