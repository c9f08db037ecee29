"""Slope of the power spectrum of images: how fast power falls with frequency, which for photographs is near -2.

Images that are too soft fall faster than real ones, images with noise or with a grid of their decoder slower. No
network is involved.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from davae.evaluate.metric import Scores, SetMetric
from davae.evaluate.spectrum import NYQUIST, MeanPower, radial

_LOWEST = 4  # cycles over an image: below, a window of its size tells frequencies apart no more
_PIXELS_AT_ONCE = 1 << 22
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def spectrum_slope(images: Tensor) -> float:
    """Exponent of the frequency in the mean power of a set.

    The luminance of each image less its mean, under a Hann window (its borders do not meet, which alone would look
    like a slope of -2), is transformed; power is averaged over images and over angles. A line is fitted to the
    logarithms from 4 cycles an image to Nyquist, every octave with the same weight.

    Args:
        images: uint8 [N, 3, S, S], S at least 16.

    Raises:
        ValueError: the images are flat, or too small.
    """
    size = images.shape[-1]
    if size < 4 * _LOWEST:
        raise ValueError(f"A spectrum's slope needs images of at least {4 * _LOWEST} px; got {size} px.")
    window = torch.hann_window(size, periodic=False, dtype=torch.float64)
    mean_power = MeanPower()
    for batch in images.split(max(1, _PIXELS_AT_ONCE // size**2)):
        luminance = torch.einsum("nchw,c->nhw", batch.double(), torch.tensor(_LUMINANCE, dtype=torch.float64))
        luminance = luminance - luminance.mean(dim=(1, 2), keepdim=True)
        mean_power.update((luminance * window * window[:, None])[:, None])
    spectrum = radial(mean_power.power[0])
    fitted = (spectrum.radius >= _LOWEST / size) & (spectrum.radius <= NYQUIST)
    radius, power = spectrum.radius[fitted].double(), spectrum.power[fitted]
    if not bool((power > 0).all()):
        raise ValueError("The slope of a spectrum is undefined: a set of images has no variation.")
    return _slope(radius.log(), power.log(), 1 / radius)


def _slope(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """Of the line with the least weighted squares."""
    weights = weights / weights.sum()
    x, y = x - (weights * x).sum(), y - (weights * y).sum()
    return float((weights * x * y).sum() / (weights * x * x).sum())


def _scores(sets: Mapping[str, Tensor], real: Tensor, seed: int) -> Scores:
    reference = spectrum_slope(real)
    slopes = {name: spectrum_slope(images) for name, images in sets.items()}
    return {
        name: {"slope": slope, "real images": reference, "difference": abs(slope - reference)}
        for name, slope in slopes.items()
    }


SPECTRUM_SLOPE = SetMetric(
    "Generation: slope of the power spectrum",
    _scores,
    f"exponent of the frequency in the power of luminance (BT.601, less its mean, Hann window), averaged over images "
    f"and angles; least squares of the logarithms from {_LOWEST} cycles an image to Nyquist, octaves weighted alike; "
    f"the difference is absolute",
    "lower",
    neutral=("slope", "real images"),
)
