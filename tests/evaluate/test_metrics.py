"""What a run is judged by: every metric says what it is, and another one is a line in a tuple."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import davae
from davae.data.solids import SolidsSource
from davae.evaluate import generation, reconstruction
from davae.evaluate.generation import CONTROL, UPGRADED, measure_generation
from davae.evaluate.metric import PairedMetric, Scores, SetMetric
from davae.evaluate.metrics import GENERATED, PAIRED
from davae.evaluate.reconstruction import VARIANTS, measure_reconstruction
from tiny_pair import tiny_autoencoder


def brightness(sets: Mapping[str, Tensor], real: Tensor, seed: int) -> Scores:
    """A metric of sets that takes a line to write."""
    return {name: {"mean": float(images.float().mean() - real.float().mean())} for name, images in sets.items()}


def test_every_column_says_what_it_is() -> None:
    image = torch.rand(2, 3, 12, 12)
    assert [metric.name for metric in PAIRED] == ["PSNR", "SSIM"]
    assert len({metric.key for metric in PAIRED}) == len(PAIRED)
    for metric in PAIRED:
        assert metric.measure(image, image).shape == (2,)
        assert metric.protocol
    assert len({metric.group for metric in GENERATED}) == len(GENERATED)
    assert all(metric.protocol for metric in GENERATED)


def test_another_metric_of_sets_is_a_table_of_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    dark, bright = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.full((2, 3, 32, 32), 9, dtype=torch.uint8)
    another = SetMetric("Brightness", brightness, "mean of the pixels, less that of real images", "lower", "of 255")
    monkeypatch.setattr(generation, "GENERATED", (another,))
    measured = measure_generation({UPGRADED: bright, CONTROL: dark}, dark, {"steps": 4})
    assert [(item.group, item.row, item.column, item.value) for item in measured] == [
        ("Brightness", UPGRADED, "mean", 9.0),
        ("Brightness", CONTROL, "mean", 0.0),
    ]
    assert measured[0].protocol["statistic"] == another.protocol


def test_another_metric_of_pairs_is_a_column_of_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    another = PairedMetric("worst", lambda a, b: (a - b).abs().flatten(1).amax(1), "largest error", "lower")
    monkeypatch.setattr(reconstruction, "PAIRED", (*PAIRED, another))
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), detail_channels=8).eval()
    autoencoder.calibrate(torch.zeros(8), torch.ones(8))
    report = measure_reconstruction(autoencoder, SolidsSource(3, 0), 32, 2)
    worst = [item for item in report.measurements if item.column == "worst"]
    assert [item.row for item in worst] == list(VARIANTS)
    assert worst[0].protocol["worst"] == "largest error"
