"""One adapter over every family of autoencoder, plain and upgraded: it says what the models themselves do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from davae.core.layout import LatentLayout
from davae.core.pixels import enlarge
from davae.core.scaling import LatentScaling
from davae.models.adapter import AutoencoderAdapter, LatentGeometry, PlainAdapter, UpgradedAdapter, adapt, geometry_of
from davae.models.declared_scaling import scaling_of
from davae.models.loading import load_autoencoder
from models.families import BASES, CHANNELS, COMPRESSION, calibrated, images, latent_of

DETAIL = 8


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return BASES[request.param]()


@pytest.fixture(params=[2, 4])
def upgraded(request: pytest.FixtureRequest, base: Any) -> AutoencoderDA:
    scale = request.param
    return calibrated(base, images(2, 16 * scale, 24 * scale), scale=scale, detail_channels=DETAIL)


def upgraded_adapter(model: AutoencoderDA) -> UpgradedAdapter:
    adapter = adapt(model)
    assert isinstance(adapter, UpgradedAdapter)
    return adapter


def latents(adapter: AutoencoderAdapter) -> Tensor:
    """Of a transformer, for an image of 4 x 6 positions."""
    return torch.randn(2, adapter.layout.channels, 4, 6)


@torch.no_grad()
def test_a_plain_autoencoder(base: Any) -> None:
    adapter, image = adapt(base), images(2, 16, 24)
    assert type(adapter) is PlainAdapter
    assert adapter.model is base
    assert adapter.layout == LatentLayout(CHANNELS, 0)
    assert adapter.compression == COMPRESSION
    assert adapter.geometry == LatentGeometry(adapter.layout, adapter.compression)
    assert adapter.scaling == adapter.raw_scaling == scaling_of(base)
    mean, logvar = adapter.moments(image)
    assert torch.equal(mean, latent_of(base, image))
    assert logvar.shape == (2, 0, 4, 6)
    normal = latents(adapter)
    assert torch.equal(adapter.decode(normal), base.decode(scaling_of(base).denormalise(normal)).sample)


@torch.no_grad()
def test_an_upgraded_autoencoder(upgraded: AutoencoderDA) -> None:
    adapter, scale = upgraded_adapter(upgraded), upgraded.config.scale
    image = images(2, 16 * scale, 24 * scale)
    assert adapter.model is upgraded
    assert adapter.layout == upgraded.layout == LatentLayout(CHANNELS, DETAIL)
    assert adapter.compression == upgraded.compression == COMPRESSION * scale
    assert adapter.scaling == scaling_of(upgraded)
    assert adapter.raw_scaling == upgraded.raw_scaling
    mean, logvar = adapter.moments(image)
    base, detail, detail_logvar = upgraded.moments(image)
    assert torch.equal(mean, torch.cat([base, detail], dim=1))
    assert torch.equal(logvar, detail_logvar)
    normal = latents(adapter)
    stored = scaling_of(upgraded).denormalise(normal)
    assert torch.equal(adapter.decode(normal), upgraded.decode(stored).sample)
    assert torch.equal(adapter.preview(normal), upgraded.preview(stored))


@torch.no_grad()
def test_cached_moments_and_stored_latents_meet_in_the_transformers_latent(
    upgraded: AutoencoderDA, base: Any
) -> None:
    side = 4 * upgraded.compression
    for adapter, image in ((adapt(upgraded), images(2, side, side)), (adapt(base), images(2, 16, 16))):
        encoded = latent_of(base, image) if isinstance(adapter, PlainAdapter) else None
        stored = upgraded.encode(image).latent_dist.mode() if encoded is None else encoded
        normal = adapter.raw_scaling.normalise(adapter.moments(image)[0])
        assert_close(adapter.scaling.normalise(stored), normal)
        assert_close(adapter.stored(normal), stored)


@pytest.mark.parametrize("is_upgraded", [False, True])
@torch.no_grad()
def test_latents_are_scaled_before_they_are_rounded(base: Any, is_upgraded: bool) -> None:
    model = calibrated(base, detail_channels=DETAIL) if is_upgraded else base
    scaling = scaling_of(model)
    model.to(torch.bfloat16)
    adapter = adapt(model)
    assert adapter.scaling == scaling or adapter.scaling.patch == 2  # a batch norm's buffers are rounded themselves
    normal = latents(adapter)
    exact, channels = adapter.scaling.denormalise(normal).bfloat16(), adapter.layout.channels
    if adapter.scaling != LatentScaling((0.0,) * channels, (1.0,) * channels):
        assert not torch.equal(exact, adapter.scaling.denormalise(normal.bfloat16()))
    assert torch.equal(adapter.stored(normal), exact)
    image = adapter.decode(normal)
    assert image.dtype == torch.bfloat16
    assert torch.equal(image, model.decode(exact).sample)
    if isinstance(adapter, UpgradedAdapter):
        assert torch.equal(adapter.preview(normal), adapter.model.preview(exact))


def test_the_geometry_is_in_the_config(base: Any, upgraded: AutoencoderDA, tmp_path: Path) -> None:
    for model in (base, upgraded):
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert geometry_of(config) == adapt(model).geometry
        assert geometry_of(config) == adapt(load_autoencoder(tmp_path)).geometry


def test_what_is_no_autoencoder_is_explained() -> None:
    with pytest.raises(ValueError, match="Cannot use Linear as a base autoencoder; known families: AutoencoderDC, "):
        adapt(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Cannot use UNet2DModel as a base autoencoder"):
        geometry_of({"_class_name": "UNet2DModel", "latent_channels": 4})
    with pytest.raises(ValueError, match="Cannot use an autoencoder without _class_name"):
        geometry_of({"latent_channels": 4})


def test_scalings_that_are_not_there_are_explained() -> None:
    upgraded = AutoencoderDA.from_base(BASES["sd3"]())
    assert adapt(upgraded).scaling == scaling_of(upgraded)
    with pytest.raises(ValueError, match="Cannot normalise latents: the detail statistics"):
        adapt(upgraded).raw_scaling  # noqa: B018
    undeclared = adapt(BASES["sd"](scaling_factor=None))
    for attribute in ("scaling", "raw_scaling"):
        with pytest.raises(ValueError, match="declares neither latents_mean/latents_std nor scaling_factor"):
            getattr(undeclared, attribute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_preview_is_the_librarys_enlargement_in_float32_alone(upgraded: AutoencoderDA, dtype: torch.dtype) -> None:
    """Why `AutoencoderDA.preview` keeps its own call: bfloat16 at scale 4 gives other pixels."""
    upgraded.to(dtype)
    stored, scale = torch.randn(1, CHANNELS + DETAIL, 16, 24).to(dtype), upgraded.config.scale
    small = upgraded.base_vae.decode(stored[:, :CHANNELS]).sample
    preview = upgraded.preview(stored)
    assert preview.dtype == dtype
    assert torch.equal(preview, F.interpolate(small, scale_factor=scale, mode="bicubic", align_corners=False))
    enlarged = enlarge(small, (small.shape[-2] * scale, small.shape[-1] * scale))
    if dtype == torch.float32:
        assert torch.equal(preview, enlarged)
    else:
        assert enlarged.dtype == torch.float32
        assert not torch.equal(preview.float(), enlarged)
        assert torch.equal(preview, enlarged.to(dtype)) == (scale == 2)
