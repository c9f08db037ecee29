"""Latent scaling: three conventions, one owner."""

from typing import Any

import pytest
import torch

from conftest import assert_close
from davae import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from models.families import BASES, CHANNELS, calibrated, flux2, images, sd, sd3, vavae


def test_scalars() -> None:
    latent = torch.randn(2, CHANNELS, 4, 6)
    assert_close(scaling_of(sd()).normalise(latent), latent * 0.2, 1e-6)  # no shift in SD
    assert_close(scaling_of(sd3()).normalise(latent), (latent - 0.06) * 0.2, 1e-6)


def test_statistics_of_channels_come_before_scalars() -> None:
    latent = torch.randn(2, CHANNELS, 4, 6)
    scaling = scaling_of(vavae())
    assert scaling.patch == 1
    for channel, (mean, std) in enumerate([(0.1, 1.0), (0.0, 2.0), (-0.3, 0.5), (1.0, 3.0)]):
        assert_close(scaling.normalise(latent)[:, channel], (latent[:, channel] - mean) / std, 1e-6)


def test_a_batch_norm_has_statistics_of_each_phase() -> None:
    base, latent = flux2(batch_norm_eps=0.1), torch.randn(2, CHANNELS, 4, 6)
    scaling = scaling_of(base)
    assert scaling.patch == 2
    assert scaling.channels == CHANNELS
    seen = scaling.normalise(latent)
    for channel in range(CHANNELS):
        for dy in range(2):
            for dx in range(2):
                index = 4 * channel + 2 * dy + dx
                want = (latent[:, channel, dy::2, dx::2] - base.bn.running_mean[index]) / torch.sqrt(
                    base.bn.running_var[index] + 0.1
                )
                assert_close(seen[:, channel, dy::2, dx::2], want, 1e-5)


@pytest.mark.parametrize("name", BASES)
def test_there_and_back(name: str) -> None:
    scaling, latent = scaling_of(BASES[name]()), torch.randn(2, CHANNELS, 6, 4)
    assert_close(scaling.denormalise(scaling.normalise(latent)), latent, 1e-5)
    assert_close(scaling.normalise(scaling.denormalise(latent)), latent, 1e-5)
    assert scaling.normalise(latent.double()).dtype == torch.float64
    assert scaling.normalise(latent.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("make", [sd3, flux2])
def test_appended_channels(make: Any) -> None:
    base, latent = scaling_of(make()), torch.randn(2, CHANNELS + 2, 4, 6)
    joint = base.extend([1.0, -2.0], [0.5, 3.0])
    assert joint.channels == CHANNELS + 2
    seen = joint.normalise(latent)
    assert_close(seen[:, :CHANNELS], base.normalise(latent[:, :CHANNELS]), 1e-6)
    assert_close(seen[:, CHANNELS], (latent[:, CHANNELS] - 1) * 0.5, 1e-6)
    assert_close(seen[:, CHANNELS + 1], (latent[:, CHANNELS + 1] + 2) * 3, 1e-6)
    assert_close(joint.denormalise(seen), latent, 1e-5)


@pytest.mark.parametrize("name", BASES)
@torch.no_grad()
def test_raw_and_stored_latents_are_seen_alike(name: str) -> None:
    base, batch = BASES[name](), images(4)
    model = calibrated(base, batch, detail_channels=6)
    posterior = model.encode(batch).latent_dist
    raw, mean, _ = model.moments(batch)
    seen = scaling_of(model).normalise(posterior.mode())
    assert_close(model.raw_scaling.normalise(model.layout.join(raw, mean)), seen)
    assert_close(seen[:, :CHANNELS], scaling_of(base).normalise(raw), 1e-5)
    detail = seen[:, CHANNELS:]
    assert detail.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (detail.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    assert_close(model.store(raw, mean), posterior.mode(), 1e-6)


@pytest.mark.parametrize("name", BASES)
def test_an_uncalibrated_detail_has_no_raw_scaling(name: str) -> None:
    with pytest.raises(ValueError, match="Cannot normalise latents: .* not been measured"):
        _ = AutoencoderDA.from_base(BASES[name]()).raw_scaling


def test_an_autoencoder_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="AutoencoderKL declares neither .*Set one of them in its config"):
        scaling_of(sd(scaling_factor=None))


def test_foreign_latents_are_refused() -> None:
    with pytest.raises(ValueError, match=r"knows 4 channels .* got a latent of shape \(1, 8, 4, 4\)"):
        scaling_of(sd()).normalise(torch.zeros(1, 8, 4, 4))
    with pytest.raises(ValueError, match=r"sides that are multiples of 2; got a latent of shape \(1, 4, 5, 4\)"):
        scaling_of(flux2()).denormalise(torch.zeros(1, 4, 5, 4))
