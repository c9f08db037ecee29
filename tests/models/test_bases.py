"""`AutoencoderDA` over every family of base autoencoder."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from conftest import assert_close
from davae import AutoencoderDA
from davae.models.bases import FAMILIES, build_base, family_of
from davae.models.identity import weights_hash
from models.families import (
    BASES,
    CHANNELS,
    COMPRESSION,
    NEW,
    calibrated,
    down_block,
    images,
    latent_of,
    shrink,
    up_block,
)


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return BASES[request.param]()


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What diffusers and the warnings module say."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
        messages += [str(warning.message) for warning in caught]
    logger.removeHandler(handler)


def width_of(base: Any) -> int:
    """Of the features beside the latent."""
    return 8 if isinstance(base, AutoencoderTiny) else 16


def test_every_family_is_tried_here() -> None:
    assert {type(make()).__name__ for make in BASES.values()} == set(FAMILIES) == set(NEW)


@pytest.mark.parametrize("scale", [2, 4])
@torch.no_grad()
def test_shapes_and_the_untouched_base_latent(base: Any, scale: int) -> None:
    image = images(2, 16 * scale, 24 * scale)
    model = calibrated(base, image, scale=scale, detail_channels=8)
    posterior = model.encode(image).latent_dist
    latent = posterior.mode()
    assert latent.shape == (2, CHANNELS + 8, 4, 6)
    want = latent_of(model.base_vae, shrink(image, scale))  # another copy picks other kernels: equal up to rounding
    assert_close(want, latent_of(base, shrink(image, scale)), 1e-5)
    assert torch.equal(latent[:, :CHANNELS], want)
    assert torch.equal(posterior.sample()[:, :CHANNELS], want)
    assert not posterior.std[:, :CHANNELS].any()
    assert (posterior.std[:, CHANNELS:] > 0).all()
    assert model.decode(latent).sample.shape == image.shape
    assert model.preview(latent).shape == image.shape
    assert_close(model.decode(latent).sample, model(image).sample)  # storing and fetching is no change


def test_weights_are_copied_but_for_head_and_stem(base: Any) -> None:
    model, source, new = AutoencoderDA.from_base(base), base.state_dict(), NEW[type(base).__name__]
    parts = {"base_vae": set(), "trunk": set(), "new": set(), "statistics": set()}
    for name, weight in model.state_dict().items():
        kind = "base_vae" if name.startswith("base_vae.") else "new" if name.startswith(new) else "trunk"
        kind = "statistics" if name.startswith("bn.") else kind
        parts[kind].add(name.removeprefix("base_vae."))
        if kind in ("base_vae", "trunk"):
            assert torch.equal(weight, source[name.removeprefix("base_vae.")]), name
    assert parts["base_vae"] == set(source)
    trained = {name for name in source if name.startswith(("encoder.", "decoder."))}
    assert parts["trunk"] == {name for name in trained if not name.startswith(new)}
    assert any(name.startswith(new[0]) for name in trained)
    assert any(name.startswith(new[1]) for name in trained)
    assert {name.split(".")[-2] for name in parts["new"]} == {"conv"}  # all widths divide here
    assert bool(parts["statistics"]) == hasattr(base, "bn")
    width, down, up = width_of(base), down_block(model), up_block(model)
    assert down.conv.weight.shape == (2, width, 3, 3)  # 2 D / s^2
    assert up.conv.weight.shape == (4 * width, 8, 3, 3)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    assert not {parameter.data_ptr() for parameter in base.parameters()} & set(addresses)  # copied, not shared
    assert len(set(addresses)) == len(addresses)


@pytest.mark.parametrize(("scale", "detail_channels"), [(2, 6), (4, 8)])
def test_widths_that_the_shortcut_does_not_divide(base: Any, scale: int, detail_channels: int) -> None:
    model, image = calibrated(base, scale=scale, detail_channels=detail_channels), images()
    width = width_of(base)
    assert scale**2 * width % (CHANNELS + detail_channels)
    projection = up_block(model).shortcut_proj
    assert projection is not None
    assert projection.weight.shape == (scale**2 * width, CHANNELS + detail_channels, 1, 1)
    assert not projection.weight.any()
    picture = model.decode(model.encode(image).latent_dist.mode()).sample
    assert picture.shape == image.shape
    picture.square().mean().backward()
    assert projection.weight.grad.any()


def test_gradients_reach_all_but_the_base(base: Any) -> None:
    model = AutoencoderDA.from_base(base).train()
    assert not model.base_vae.training
    noise = torch.randn(2, CHANNELS, 4, 6)
    model(images(), noise).sample.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.base_vae.parameters())
    for part in (model.encoder, model.decoder):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in part.parameters())
    assert model.detail_weight is down_block(model).conv.weight
    assert model.last_weight.grad.any()


@torch.no_grad()
def test_the_last_weight_is_the_last(base: Any) -> None:
    model, latents = calibrated(base), torch.randn(2, 2 * CHANNELS, 4, 6)
    before = model.decode(latents).sample
    model.last_weight.zero_()
    first, second = model.decode(latents).sample
    assert not torch.equal(before[0], before[1])
    assert torch.equal(first, second)  # nothing but its bias is left


class WeightsInside(nn.Module):
    """What a loss finds while a step runs."""

    def __init__(self, model: AutoencoderDA) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.model.last_weight, self.model.detail_weight


def test_weights_are_found_while_others_stand_in_for_them(base: Any) -> None:
    """As when the memory of a step is measured with `torch.func.functional_call`."""
    module = WeightsInside(AutoencoderDA.from_base(base))
    stand_ins = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    found = torch.func.functional_call(module, stand_ins, ())
    assert not any(weight.any() for weight in found)
    assert all(weight.any() for weight in module())


def test_checkpointing_computes_the_same_where_the_family_says_so(base: Any) -> None:
    model, image = AutoencoderDA.from_base(base).train(), images(1)
    want = model(image).sample.detach()
    try:
        model.enable_gradient_checkpointing()
    except ValueError:  # diffusers has none for this class
        same = False
    else:
        same = torch.allclose(model(image).sample, want, rtol=1e-4, atol=1e-5)
    assert same == family_of(type(base).__name__).can_checkpoint


@torch.no_grad()
def test_preview_is_the_enlarged_base_image(base: Any) -> None:
    model = calibrated(base)
    latent = model.encode(images()).latent_dist.mode()
    small = model.base_vae.decode(latent[:, :CHANNELS]).sample
    assert_close(small, base.decode(latent[:, :CHANNELS]).sample, 1e-5)
    want = F.interpolate(small, scale_factor=2, mode="bicubic", align_corners=False)
    latent[:, CHANNELS:] = 1e3
    assert torch.equal(model.preview(latent), want)


@torch.no_grad()
def test_half_precision(base: Any) -> None:
    image = images()
    model = AutoencoderDA.from_base(base).eval()
    want = model(image).sample
    weights = model.state_dict()
    half = AutoencoderDA.from_base(base.to(torch.bfloat16)).eval()
    floating = [tensor for tensor in half.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.bfloat16}
    half.load_state_dict(weights)
    half.calibrate(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    latent = half.encode(image.bfloat16()).latent_dist.mode()
    assert torch.equal(latent[:, :CHANNELS], latent_of(half.base_vae, shrink(image.bfloat16())))
    picture = half.decode(latent).sample
    assert picture.dtype == half.preview(latent).dtype == torch.bfloat16
    assert (picture.float() - want).square().mean() < 0.01 * want.var()


@torch.no_grad()
def test_saving_and_loading(base: Any, tmp_path: Path, complaints: list[str]) -> None:
    model, image = calibrated(base, detail_channels=6), images()
    latent = model.encode(image).latent_dist.mode()
    model.save_pretrained(tmp_path)
    loaded = AutoencoderDA.from_pretrained(tmp_path)
    assert weights_hash(loaded) == weights_hash(model)
    assert type(loaded.base_vae) is type(base)
    assert not any(parameter.requires_grad for parameter in loaded.base_vae.parameters())
    assert_close(loaded.encode(image).latent_dist.mode(), latent, 1e-5)
    assert_close(loaded.decode(latent).sample, model.decode(latent).sample, 1e-5)
    assert complaints == []


@torch.no_grad()
def test_a_base_from_a_folder_is_a_base(base: Any, tmp_path: Path, complaints: list[str]) -> None:
    base.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path)
    complaints.clear()  # diffusers' own AutoencoderTiny complains about its own config
    model, image = calibrated(loaded), images()
    assert torch.equal(model.encode(image).latent_dist.mode()[:, :CHANNELS], latent_of(model.base_vae, shrink(image)))
    assert_close(model.preview(torch.ones(1, 8, 2, 2)), calibrated(base).preview(torch.ones(1, 8, 2, 2)), 1e-6)
    assert complaints == []


def test_config_has_what_pipelines_read(base: Any) -> None:
    config, base_config = AutoencoderDA.from_base(base, scale=4, detail_channels=8).config, base.config
    widths = base_config.get("block_out_channels") or base_config.encoder_block_out_channels
    assert config.block_out_channels == [*widths, widths[-1], widths[-1]]
    assert 2 ** (len(config.block_out_channels) - 1) == 4 * COMPRESSION
    assert config.latent_channels == CHANNELS + 8
    for key in ("scaling_factor", "shift_factor", "batch_norm_eps", "patch_size"):
        assert config[key] == base_config.get(key)
    if base_config.get("latents_mean") is not None:
        assert config.latents_mean == [*base_config.latents_mean, *[0.0] * 8]
        assert config.latents_std == [*base_config.latents_std, *[1.0] * 8]


def test_an_unknown_family_is_explained() -> None:
    with pytest.raises(ValueError, match="Cannot use VQModel .* AutoencoderDC, AutoencoderKL, .*AutoencoderTAEF2"):
        build_base("VQModel", {})
