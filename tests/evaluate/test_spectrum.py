"""Power spectra of signals whose spectrum is known: noise, sinusoids, constants."""

import math

import pytest
import torch

from davae.evaluate.spectrum import MeanPower, centroid, energy_above, frequencies, radial


def _power(*batches: torch.Tensor) -> torch.Tensor:
    mean = MeanPower()
    for batch in batches:
        mean.update(batch)
    return mean.power


def _wave(height: int, width: int, cycles: int) -> torch.Tensor:
    """`cycles` over the width, amplitude sqrt(2): variance 1."""
    row = math.sqrt(2) * torch.sin(2 * math.pi * cycles * torch.arange(width) / width + 0.3)
    return row.expand(1, 1, height, width)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 16), (16, 5), (2, 64)])
def test_power_sums_to_the_variance_on_every_grid(height: int, width: int) -> None:
    latent = torch.randn(3, 2, height, width, dtype=torch.float64) * 1.7 + 5
    within = latent.var(dim=(2, 3), correction=0).mean(dim=0)
    spectrum = radial(_power(latent))
    torch.testing.assert_close((spectrum.power * spectrum.modes).sum(dim=1), within)
    assert spectrum.modes.sum().item() == pytest.approx(1)
    assert (spectrum.modes > 0).all(), "no ring is empty"


def test_white_noise_is_flat_at_its_variance() -> None:
    power = _power(torch.randn(64, 8, 16, 16) * 2).mean(dim=0)
    spectrum = radial(power)
    torch.testing.assert_close(spectrum.power[1:], torch.full_like(spectrum.power[1:], 4), rtol=0.05, atol=0)
    beyond = (frequencies(16, 16) > 0.25).double().mean().item()
    assert energy_above(power, 0.25) == pytest.approx(beyond, abs=0.02)


@pytest.mark.parametrize(("height", "width", "cycles"), [(16, 16, 3), (8, 32, 10), (32, 8, 2)])
def test_a_sinusoid_is_one_ring(height: int, width: int, cycles: int) -> None:
    power = _power(_wave(height, width, cycles) + 7)
    spectrum = radial(power)
    ring = int(spectrum.power[0].argmax())
    assert spectrum.radius[ring].item() == pytest.approx(cycles / width)
    assert (spectrum.power[0] * spectrum.modes)[ring].item() == pytest.approx(1, abs=1e-5)
    assert centroid(power[0]) == pytest.approx(cycles / width, abs=1e-5)
    assert energy_above(power[0], cycles / width - 0.01) == pytest.approx(1, abs=1e-5)
    assert energy_above(power[0], cycles / width + 0.01) == pytest.approx(0, abs=1e-5)


def test_two_waves_share_energy_as_their_squares() -> None:
    latent = 3 * _wave(16, 16, 2) + 1 * _wave(16, 16, 6)
    power = _power(latent)[0]
    assert energy_above(power, 0.25) == pytest.approx(0.1, abs=1e-5)
    assert centroid(power) == pytest.approx((9 * 2 + 6) / 160, abs=1e-5)


def test_batches_do_not_matter_and_channels_stay_apart() -> None:
    latent = torch.cat([torch.randn(5, 1, 8, 8), torch.zeros(5, 1, 8, 8)], dim=1)
    power = _power(latent)
    torch.testing.assert_close(_power(latent[:2], latent[2:]), power)
    assert (power[1] == 0).all()
    assert math.isnan(centroid(power[1]))
    assert math.isnan(energy_above(power[1], 0.25))


def test_refusals_name_the_shapes() -> None:
    mean = MeanPower()
    with pytest.raises(ValueError, match="needs at least one image"):
        _ = mean.power
    with pytest.raises(ValueError, match="at least 2 x 2; got 1 x 8"):
        mean.update(torch.zeros(1, 2, 1, 8))
    mean.update(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\) after \(2, 8, 8\)"):
        mean.update(torch.zeros(1, 2, 4, 4))
