"""The slope of spectra that are known: noise of a power law, softened and noisy copies, and its seconds."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from davae.evaluate.spectrum import frequencies
from davae.evaluate.spectrum_slope import SPECTRUM_SLOPE, spectrum_slope


def power_law(exponent: float, count: int = 8, side: int = 64) -> Tensor:
    """uint8 [N, 3, S, S] whose power falls as frequency ** exponent."""
    draw = torch.Generator().manual_seed(0)
    spectrum = torch.fft.fft2(torch.randn(count, 1, side, side, generator=draw, dtype=torch.float64))
    amplitude = frequencies(side, side).clamp_min(1 / side) ** (exponent / 2)
    images = torch.fft.ifft2(spectrum * amplitude).real
    images = images / images.std(dim=(2, 3), keepdim=True) * 40 + 128
    return images.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0, -2.5])
@pytest.mark.parametrize("side", [64, 96])
def test_the_exponent_of_a_power_law_is_found(exponent: float, side: int) -> None:
    assert spectrum_slope(power_law(exponent, side=side)) == pytest.approx(exponent, abs=0.12)


def test_soft_images_fall_faster_and_noisy_ones_slower() -> None:
    real = power_law(-2.0)
    soft = F.avg_pool2d(real.float(), 3, 1, 1).round().to(torch.uint8)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(1)) * 30
    noisy = (real + noise).round().clamp(0, 255).to(torch.uint8)
    assert spectrum_slope(soft) < spectrum_slope(real) - 0.3
    assert spectrum_slope(noisy) > spectrum_slope(real) + 0.3


def test_the_table_has_the_slope_and_how_far_it_is_from_real_images() -> None:
    real, soft = power_law(-1.5), power_law(-2.0)
    scores = SPECTRUM_SLOPE.measure({"a": soft, "b": real}, real, 0)
    assert scores["b"]["difference"] == 0
    assert scores["a"]["difference"] == pytest.approx(scores["a"]["real images"] - scores["a"]["slope"])
    assert scores["a"]["difference"] == pytest.approx(0.5, abs=0.15)


def test_brightness_and_batches_do_not_matter() -> None:
    real = power_law(-2.0)
    darker = (real.int() - 20).clamp(0, 255).to(torch.uint8)
    assert spectrum_slope(darker) == pytest.approx(spectrum_slope(real), abs=0.01)
    assert spectrum_slope(torch.cat([real, real])) == pytest.approx(spectrum_slope(real), rel=1e-12)


def test_flat_and_tiny_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no variation"):
        spectrum_slope(torch.full((2, 3, 32, 32), 7, dtype=torch.uint8))
    with pytest.raises(ValueError, match="at least 16 px; got 12 px"):
        spectrum_slope(power_law(-2.0)[:, :, :12, :12])
