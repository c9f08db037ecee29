"""How many images are encoded and decoded at once, and that their statistics do not depend on it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

import davae
from davae.data.solids import SolidsSource
from davae.models import chunking
from davae.models.chunking import images_at_once
from davae.stages.base_autoencoder import latent_statistics
from davae.stages.tokenizer import calibrate
from tiny_pair import tiny_autoencoder


class Counting(SolidsSource):
    """Remembers how many images were asked for at once."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.chunks: list[int] = []

    def images(self, indices: Sequence[int], size: Any) -> Tensor:
        self.chunks.append(len(indices))
        return super().images(indices, size)


@pytest.mark.parametrize(
    ("side", "limit", "expected"),
    [(64, 32, 32), (256, 64, 64), (256, 32, 32), (512, 64, 16), (1024, 32, 4), (2048, 32, 1), (4096, 32, 1)],
)
def test_large_images_are_few(side: int, limit: int, expected: int) -> None:
    assert images_at_once(side, side, limit) == expected
    assert images_at_once(side // 2, 2 * side, limit) == expected


def test_calibration_takes_what_fits_and_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), scale=2).eval()
    with torch.no_grad():
        for weight in autoencoder.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    source = Counting(70)
    calibrate(autoencoder, source, 32, "fp32")
    want = [torch.tensor(autoencoder.config[name]) for name in ("detail_mean", "detail_std")]
    assert source.chunks == [32, 32, 6]
    source.chunks.clear()
    monkeypatch.setattr(chunking, "PIXELS_AT_ONCE", 9 * 32 * 32)
    calibrate(autoencoder, source, 32, "fp32")
    assert source.chunks == [9] * 7 + [7]
    for name, tensor in zip(("detail_mean", "detail_std"), want, strict=True):
        torch.testing.assert_close(torch.tensor(autoencoder.config[name]), tensor, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderDC"])
def testlatent_statistics_take_what_fits_and_are_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    torch.manual_seed(0)
    autoencoder: Any = tiny_autoencoder()
    if kind == "AutoencoderKL":
        autoencoder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=3).eval()
    source = Counting(70)
    want = latent_statistics(autoencoder, source, 16)
    assert source.chunks == [64, 6]
    source.chunks.clear()
    monkeypatch.setattr(chunking, "PIXELS_AT_ONCE", 9 * 16 * 16)
    got = latent_statistics(autoencoder, source, 16)
    assert source.chunks == [9] * 7 + [7]
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6)
