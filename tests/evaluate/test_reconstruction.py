"""Reconstruction and what the decoder makes of no detail and of random detail."""

import pytest
import torch

import davae
from davae.core.pixels import signed_to_unit
from davae.data.solids import SolidsSource
from davae.evaluate.metrics import PAIRED
from davae.evaluate.reconstruction import VARIANTS, measure_reconstruction, reconstruct
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.similarity import psnr
from tiny_pair import tiny_autoencoder
from tiny_space import tiny_space

SIDE, COUNT = 32, 5


@pytest.fixture(scope="module")
def autoencoder() -> davae.AutoencoderDA:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = davae.AutoencoderDA.from_base(tiny_autoencoder(), detail_channels=8).eval()
    model.calibrate(torch.full((8,), 0.3), torch.full((8,), 1.7))
    return model


def test_numbers_do_not_depend_on_batches_but_random_detail_on_the_seed(autoencoder: davae.AutoencoderDA) -> None:
    source = SolidsSource(COUNT, 0)
    whole, parts = (
        measure_reconstruction(autoencoder, source, SIDE, batch_size).measurements for batch_size in (5, 2)
    )
    assert [item.value for item in parts] == pytest.approx([item.value for item in whole], rel=1e-4)
    other = measure_reconstruction(autoencoder, source, SIDE, 5, seed=1).measurements
    changed = {a.row for a, b in zip(whole, other, strict=True) if a.value != b.value}
    assert changed == {"random detail"}


def test_a_row_a_variant_and_a_column_a_metric(autoencoder: davae.AutoencoderDA) -> None:
    source = SolidsSource(COUNT, 0)
    report = measure_reconstruction(autoencoder, source, SIDE, 5, shown=3)
    assert [(item.row, item.column) for item in report.measurements] == [
        (variant, metric.name) for variant in VARIANTS for metric in PAIRED
    ]
    assert report.strips.keys() == {"input", *VARIANTS}
    assert all(strip.shape == (3, 3, SIDE, SIDE) and strip.dtype == torch.uint8 for strip in report.strips.values())
    assert {metric.key for metric in PAIRED} <= report.measurements[0].protocol.keys()
    originals = source.images(range(COUNT), SIDE)
    with torch.no_grad():
        rebuilt = autoencoder.decode(autoencoder.encode(originals / 127.5 - 1).latent_dist.mode()).sample
    expected = psnr(signed_to_unit(rebuilt), originals).mean().item()
    assert report.measurements[0].value == pytest.approx(expected, abs=1e-3)


def test_variants_differ_in_what_they_say(autoencoder: davae.AutoencoderDA) -> None:
    images = SolidsSource(2, 0).images(range(2), SIDE) / 127.5 - 1
    variants = dict(reconstruct(autoencoder, images, ["a", "b"], seed=0))
    base, _, _ = autoencoder.moments(images)
    with torch.no_grad():
        nothing = autoencoder.decode(autoencoder.store(base, torch.zeros(2, 8, *base.shape[2:]))).sample
        small = autoencoder.preview(autoencoder.store(base, torch.randn(2, 8, *base.shape[2:])))
    assert torch.equal(variants["zero detail"], signed_to_unit(nothing))
    assert torch.equal(variants["base upsampled"], signed_to_unit(small))
    assert not torch.equal(variants["random detail"], variants["full"])


def test_rfid_is_a_column_of_the_same_pass(autoencoder: davae.AutoencoderDA) -> None:
    fid = ReconstructionFID(tiny_space(), torch.device("cpu"))
    report = measure_reconstruction(autoencoder, SolidsSource(COUNT, 0), SIDE, 2, fid=fid)
    found = {item.row: item for item in report.measurements if item.column == f"rFID-{COUNT}"}
    assert found.keys() == VARIANTS.keys()
    assert all(item.value > 0 and item.protocol["rfid"]["extractor"] == "tiny" for item in found.values())
