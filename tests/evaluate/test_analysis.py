"""The pass over images: batches do not matter, units are the right ones, and what cannot be measured is said."""

import pytest
import torch

from davae import AutoencoderDA, LatentLayout
from davae.core.observer import Silent
from davae.data.solids import SolidsSource
from davae.evaluate.analysis import LatentStatistics, gather, measure_latents, white_noise
from tiny_pair import tiny_autoencoder

GROUPS = {
    "Power spectrum",
    "Alignment",
    "Alignment of each base channel",
    "Linear probe",
    "Correlation of channels",
    "Principal components",
}


def _tiny(detail: int = 8) -> AutoencoderDA:
    autoencoder = AutoencoderDA.from_base(tiny_autoencoder(), scale=2, detail_channels=detail).eval()
    autoencoder.calibrate(torch.linspace(-1, 1, detail), torch.linspace(0.5, 2, detail))
    return autoencoder


def _fed(layout: LatentLayout, raw: torch.Tensor) -> LatentStatistics:
    statistics = LatentStatistics(layout)
    statistics.update(raw, raw, torch.arange(len(raw)) % 2 == 0)
    return statistics


def test_numbers_do_not_depend_on_batches_but_on_the_seed() -> None:
    autoencoder, source = _tiny(), SolidsSource(10, 3)
    whole, shown = gather(autoencoder, source, 32, 10, Silent())
    parts, again = gather(autoencoder, source, 32, 3, Silent())
    assert shown.shape == (6, 12, 4, 4)
    torch.testing.assert_close(again, shown, atol=1e-5, rtol=0)
    first, second = (measure_latents(statistics, {})[0] for statistics in (whole, parts))
    assert {item.group for item in first} == GROUPS
    assert [item.value for item in second] == pytest.approx([item.value for item in first], rel=1e-4, abs=1e-6)

    other = measure_latents(gather(autoencoder, source, 32, 10, Silent(), seed=1)[0], {})[0]
    changed = {a.group for a, b in zip(first, other, strict=True) if a.value != b.value}
    assert changed == {"Linear probe"}


def test_spectrum_is_in_the_transformers_units_and_alignment_in_raw_ones() -> None:
    autoencoder, source = _tiny(), SolidsSource(4, 3)
    statistics, _ = gather(autoencoder, source, 32, 4, Silent())
    with torch.no_grad():
        base, mean, _ = autoencoder.moments(source.images(range(4), 32).float() / 127.5 - 1)
    normalised = autoencoder.raw_scaling.normalise(autoencoder.layout.join(base, mean))
    within = normalised.double().var(dim=(2, 3), correction=0).mean(dim=0)
    torch.testing.assert_close(statistics.power.mean(dim=(1, 2)), within, rtol=1e-5, atol=1e-9)
    found = {item.column: item.value for item in measure_latents(statistics, {})[0] if item.group == "Alignment"}
    difference = (autoencoder.layout.group_mean(mean) - base).square().mean()
    assert found["MSE"] == pytest.approx(difference.item(), rel=1e-5)


def test_aligned_groups_are_found_and_shuffled_ones_are_not() -> None:
    layout = LatentLayout(3, 6)
    base = torch.randn(8, 3, 8, 8)
    detail = base.repeat_interleave(2, dim=1) + 0.1 * torch.randn(8, 6, 8, 8)
    values = {}
    for name, part in (("aligned", detail), ("shuffled", detail.roll(2, dims=1))):
        found = measure_latents(_fed(layout, layout.join(base, part)), {})[0]
        values[name] = {f"{item.group}/{item.row}/{item.column}": item.value for item in found}
    r, probe = "Alignment/grouped detail mean/mean r", "Linear probe/base from detail/R^2 on other images"
    assert values["aligned"][r] > 0.98
    assert abs(values["shuffled"][r]) < 0.2
    assert values["shuffled"][probe] > 0.95, "a probe does not care about the order of channels"


def test_what_cannot_be_measured_is_said() -> None:
    few = LatentLayout(3, 2)
    measurements, notes = measure_latents(_fed(few, torch.randn(4, 5, 4, 4)), {})
    assert not {item.group for item in measurements} & {"Alignment", "Alignment of each base channel"}
    assert notes == ["Alignment is not measured: there are fewer detail than base channels (2 for 3)."]

    latent = torch.randn(4, 4, 4, 4)
    latent[:, 3] = 0.1
    measurements, notes = measure_latents(_fed(LatentLayout(2, 2), latent), {})
    assert [item.row for item in measurements if item.group == "Alignment of each base channel"] == ["channel 0"]
    assert notes == [
        "Alignment of each base channel, channel 1, r is undefined: what it divides by has no variance.",
        "Correlation of channels, within detail, mean |r| is undefined: what it divides by has no variance.",
    ]


def test_rows_of_several_autoencoders_carry_their_names() -> None:
    layout = LatentLayout(2, 2)
    measurements, _ = measure_latents(_fed(layout, torch.randn(4, 4, 4, 4)), {"images": 4}, "other")
    for item in measurements:
        is_long = item.group == "Alignment of each base channel"
        assert (item.column == "other") if is_long else item.row.startswith("other: ")
        assert item.protocol["images"] == 4
        assert item.protocol["grid"] == "4 x 4"


def test_white_noise_row_is_what_noise_measures() -> None:
    layout = LatentLayout(8, 8)
    measured = measure_latents(_fed(layout, torch.randn(64, 16, 8, 8)), {})[0]
    computed = white_noise(8, 8, {})
    assert [item.column for item in computed] == ["energy above half of Nyquist", "centroid"]
    for item in computed:
        twin = next(m for m in measured if (m.group, m.row, m.column) == ("Power spectrum", "base", item.column))
        assert item.value == pytest.approx(twin.value, rel=0.02)
        assert item.unit == twin.unit


def test_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1"):
        gather(_tiny(), SolidsSource(1, 0), 32, 4, Silent())
