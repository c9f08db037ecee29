"""Radial power spectrum of latents (supplement S6, Figure S5): how fine a channel's variation is.

Power is |FFT|^2 / (h w) of a channel of one image less its mean. White noise of variance 1 then has power 1 at every
frequency of any grid, and the mean of the power over all h w frequencies is the variance (Parseval). No window is
applied: latents are nearly white, so little leaks from their borders, while a window would take the coarsest
frequencies from grids as small as 8 x 8 and break Parseval. What does leak makes the coarser latent look finer.
Frequencies are in cycles per latent position; Nyquist is 0.5 along an axis, and corners reach 0.71.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NYQUIST = 0.5  # cycles per position


class MeanPower:
    """Running mean over images of the 2-D power of each channel, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = torch.zeros(())

    def update(self, latent: Tensor) -> None:
        """Add a batch [B, K, h, w] of at least 2 x 2 positions, of the same grid as every other batch."""
        values = latent.detach().to("cpu", torch.float64)
        if min(values.shape[2:]) < 2:
            raise ValueError(
                f"A spectrum needs a latent grid of at least 2 x 2; got {values.shape[2]} x {values.shape[3]}. "
                f"Take larger images."
            )
        if self.count and self._sum.shape != values.shape[1:]:
            raise ValueError(
                f"A spectrum averages latents of one shape; got {tuple(values.shape[1:])} after "
                f"{tuple(self._sum.shape)}. Bring all images to one size."
            )
        values = values - values.mean(dim=(2, 3), keepdim=True)
        power = torch.fft.fft2(values, norm="ortho").abs().square()
        self._sum = self._sum + power.sum(dim=0)
        self.count += values.shape[0]

    @property
    def power(self) -> Tensor:
        """Mean over images, float64 [K, h, w], in the order of `frequencies`."""
        if self.count == 0:
            raise ValueError("A spectrum needs at least one image; got none.")
        return self._sum / self.count


@dataclass(frozen=True)
class RadialSpectrum:
    """Power averaged over angles.

    Args:
        radius: middle of each ring in cycles per position, [R]; ring i is i cycles over the grid's longer side.
        power: mean power of a ring, [..., R].
        modes: share of all frequencies that lie in a ring, [R]; (power * modes).sum(-1) is the variance.
    """

    radius: Tensor
    power: Tensor
    modes: Tensor


def frequencies(height: int, width: int) -> Tensor:
    """Distance of each FFT coefficient from zero frequency, cycles per position, float64 [h, w]."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.fftfreq(width, dtype=torch.float64)
    return (rows.square()[:, None] + columns.square()).sqrt()


def radial(power: Tensor) -> RadialSpectrum:
    """Rings of power [..., h, w] around zero frequency, out to the corners."""
    height, width = power.shape[-2:]
    longer = max(height, width)
    ring = (frequencies(height, width) * longer).round().long().flatten()
    counts = torch.bincount(ring)
    sums = torch.zeros(*power.shape[:-2], len(counts), dtype=power.dtype).index_add(-1, ring, power.flatten(-2))
    return RadialSpectrum(torch.arange(len(counts)) / longer, sums / counts, counts / counts.sum())


def energy_above(power: Tensor, frequency: float) -> float:
    """Share of the energy of power [h, w] beyond `frequency` (cycles per position), corners included.

    nan without energy, as `centroid`.
    """
    return float(power[frequencies(*power.shape) > frequency].sum() / power.sum())


def centroid(power: Tensor) -> float:
    """Mean frequency of power [h, w], weighted by energy, in cycles per position, corners included."""
    return float((power * frequencies(*power.shape)).sum() / power.sum())
