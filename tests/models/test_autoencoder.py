"""The structured autoencoder over tiny real diffusers autoencoders."""

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AsymmetricAutoencoderKL, AutoencoderDC, AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from davae.models.identity import weights_hash
from davae.models.tiling import run_tiled

CHANNELS = 4


def kl(**changes: Any) -> AutoencoderKL:
    """f2, with attention in the middle as the public ones have."""
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "latent_channels": CHANNELS,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.2,
    }
    return AutoencoderKL(**(settings | changes)).eval()


def dc(stem_layers: int) -> AutoencoderDC:
    """f2; without layers in the first block it has a pixel-unshuffle stem."""
    layers = (stem_layers, 1)
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=8,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.7,
    ).eval()


BASES = {
    "kl": kl,
    "kl without quant convs": lambda: kl(use_quant_conv=False, use_post_quant_conv=False),
    "kl with channel statistics": lambda: kl(latents_mean=[0.1, 0.0, -0.3, 1.0], latents_std=[1.0, 2.0, 0.5, 3.0]),
    "dc with a pixel-unshuffle stem": lambda: dc(0),
    "dc with a plain stem": lambda: dc(1),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return BASES[request.param]()


def latent_of(base: Any, image: Tensor) -> Tensor:
    encoded = base.encode(image)
    return encoded.latent if isinstance(base, AutoencoderDC) else encoded.latent_dist.mode()


def images(batch: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, height, width) * 2 - 1


def calibrated(base: Any, batch: Tensor | None = None, **settings: Any) -> AutoencoderDA:
    model = AutoencoderDA.from_base(base, **settings).eval()
    mean = model.moments(images() if batch is None else batch)[1].detach()
    model.calibrate(mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3)))
    return model


@torch.no_grad()
def test_base_channels_are_the_pretrained_latent_bit_for_bit(base: Any) -> None:
    model, image = calibrated(base), images()
    small = F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False)
    want = latent_of(base, small)
    posterior = model.encode(image).latent_dist
    assert torch.equal(posterior.mode()[:, :CHANNELS], want)
    assert torch.equal(posterior.sample()[:, :CHANNELS], want)
    assert not posterior.std[:, :CHANNELS].any()
    assert not posterior.var[:, :CHANNELS].any()
    assert (posterior.std[:, CHANNELS:] > 0).all()
    assert not torch.equal(posterior.sample()[:, CHANNELS:], posterior.mode()[:, CHANNELS:])
    assert torch.equal(model.encode(image, return_dict=False)[0].mode(), posterior.mode())


@torch.no_grad()
def test_shapes_of_latent_image_and_preview(base: Any) -> None:
    model, image = calibrated(base), images()
    latent = model.encode(image).latent_dist.mode()
    assert latent.shape == (2, 2 * CHANNELS, 4, 6)
    assert model.decode(latent).sample.shape == image.shape
    assert model.decode(latent, return_dict=False)[0].shape == image.shape
    assert model.preview(latent).shape == image.shape


@torch.no_grad()
def test_preview_is_the_enlarged_base_image_whatever_the_detail(base: Any) -> None:
    model, image = calibrated(base), images()
    latent = model.encode(image).latent_dist.mode()
    small = base.decode(latent[:, :CHANNELS]).sample
    want = F.interpolate(small, scale_factor=2, mode="bicubic", align_corners=False)
    latent[:, CHANNELS:] = 1e3
    assert torch.equal(model.preview(latent), want)


@torch.no_grad()
def test_calibrated_detail_has_mean_zero_and_variance_one_for_the_pair(base: Any) -> None:
    batch = images(6)
    model = calibrated(base, batch)
    stored = model.encode(batch).latent_dist.mode()
    if base.config.get("latents_mean") is None:  # what stock pipelines compute
        shift = base.config.get("shift_factor") or 0.0
        seen = (stored - shift) * base.config.scaling_factor
        assert_close(scaling_of(model).normalise(stored), seen, 1e-6)
    else:
        seen = scaling_of(model).normalise(stored)
    detail = seen[:, CHANNELS:]
    assert detail.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (detail.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4
    assert_close(seen[:, :CHANNELS], scaling_of(base).normalise(stored[:, :CHANNELS]), 1e-6)
    # A latent cache starts from raw moments and must reach the same numbers.
    base_latent, mean, _ = model.moments(batch)
    assert_close(model.raw_scaling.normalise(model.layout.join(base_latent, mean)), seen, 1e-4)


@torch.no_grad()
def test_posterior_spread_is_scaled_as_its_mean(base: Any) -> None:
    model, image = calibrated(base), images()
    _, _, logvar = model.moments(image)
    posterior = model.encode(image).latent_dist
    seen = posterior.std[:, CHANNELS:] * torch.tensor(scaling_of(model).scale[CHANNELS:]).view(1, -1, 1, 1)
    want = (0.5 * logvar).exp() / torch.tensor(model.config.detail_std).view(1, -1, 1, 1)
    assert_close(seen, want, 1e-4)


@torch.no_grad()
def test_decoding_a_stored_latent_is_decoding_the_raw_one(base: Any) -> None:
    model, image = calibrated(base), images()
    stored = model.encode(image).latent_dist.mode()
    output = model(image)
    assert_close(model.decode(stored).sample, output.sample, 1e-4)
    assert torch.equal(output.base, stored[:, :CHANNELS])
    assert torch.equal(model(image, base=output.base).sample, output.sample)


@torch.no_grad()
def test_training_forward_draws_and_drops_detail(base: Any) -> None:
    model, image = AutoencoderDA.from_base(base).eval(), images()
    noise = torch.randn(2, CHANNELS, 4, 6)
    output = model(image, noise, keep=torch.tensor([1.0, 0.0]))
    want = output.detail_mean + (0.5 * output.detail_logvar).exp() * noise
    assert torch.equal(output.detail, want)
    latent = model.layout.join(output.base, want)
    assert_close(output.sample[:1], model.decoder(latent[:1]), 1e-5)
    latent[:, CHANNELS:] = 0
    assert_close(output.sample[1:], model.decoder(latent[1:]), 1e-5)


def test_base_is_frozen_and_the_rest_learns(base: Any) -> None:
    model = AutoencoderDA.from_base(base).train()
    assert not model.base_vae.training
    assert model.encoder.training
    model(images(), torch.randn(2, CHANNELS, 4, 6)).sample.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.base_vae.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    assert model.last_weight.grad.any()
    assert model.detail_weight.grad.any()


def test_fresh_model_never_trains_its_base() -> None:
    model = AutoencoderDA.from_base(kl())
    assert not model.base_vae.training  # batch norms of some bases would move with every preview


def test_detail_networks_start_from_the_pretrained_weights(base: Any) -> None:
    model = AutoencoderDA.from_base(base)
    source = base.state_dict()
    for name, weight in model.state_dict().items():
        if name.startswith("base_vae."):
            assert torch.equal(weight, source[name.removeprefix("base_vae.")])
        elif not name.startswith(("encoder.conv_out.", "decoder.conv_in.")):
            assert torch.equal(weight, source[name])
    assert model.encoder.conv_in is not base.encoder.conv_in
    assert all(parameter.requires_grad for parameter in base.parameters())  # the source is left as it was


@torch.no_grad()
def test_slicing_changes_nothing(base: Any) -> None:
    model, image = calibrated(base), images(3)
    latent = model.encode(image).latent_dist.mode()
    picture = model.decode(latent).sample
    model.enable_slicing()
    assert_close(model.encode(image).latent_dist.mode(), latent, 1e-5)
    assert_close(model.decode(latent).sample, picture, 1e-5)


@pytest.mark.parametrize("size", [(128, 128), (64, 200)])
@torch.no_grad()
def test_tiles_make_small_seams(size: tuple[int, int]) -> None:
    # Normalisation of this base is local, so tiles differ at their rims alone.
    model = calibrated(dc(0))
    image = F.interpolate(torch.rand(1, 3, 16, 16), size=size, mode="bicubic", align_corners=False) * 2 - 1
    latent = model.encode(image).latent_dist.mode()
    picture = model.decode(latent).sample
    model.enable_tiling()
    model.tile_sample_min_size = 64
    tiled = model.encode(image).latent_dist.mode()
    fits_in_a_tile = max(size) <= 64 * model.config.scale
    assert torch.equal(tiled[:, :CHANNELS], latent[:, :CHANNELS]) == fits_in_a_tile  # the base image is smaller
    for got, want in ((tiled, latent), (model.decode(latent).sample, picture)):
        assert got.shape == want.shape
        assert not torch.equal(got, want)
        error = (got - want).abs()
        assert error.max() < 0.5 * want.abs().max()
        assert error.mean() < 0.05 * want.abs().mean()
        assert error.median() < 1e-5 * want.abs().max()  # most positions are far from any rim


@torch.no_grad()
def test_images_of_one_tile_are_not_tiled() -> None:
    model, image = calibrated(dc(0)), images(1, 64, 64)
    latent = model.encode(image).latent_dist.mode()
    model.enable_tiling()
    model.tile_sample_min_size = 64
    assert torch.equal(model.encode(image).latent_dist.mode(), latent)


@pytest.mark.parametrize("overlap", [0, 2, 6])
@pytest.mark.parametrize("size", [(8, 8), (13, 29), (5, 16)])
def test_tiles_of_a_pointwise_function_leave_no_trace(size: tuple[int, int], overlap: int) -> None:
    inputs = torch.randn(2, 3, *size, dtype=torch.float64).float()

    def enlarge(part: Tensor) -> Tensor:
        return F.interpolate(part.square(), scale_factor=2, mode="nearest")

    assert_close(run_tiled(enlarge, inputs, tile=8, overlap=overlap), enlarge(inputs), 1e-6)
    with pytest.raises(ValueError, match="cannot overlap by 8"):
        run_tiled(enlarge, inputs, tile=8, overlap=8)


FRESH_PROCESS = """
import sys, torch
from safetensors.torch import load_file
import davae
from diffusers import AutoencoderKL
from davae.models.identity import weights_hash
for folder in sys.argv[1:]:
    model = davae.AutoencoderDA.from_pretrained(folder)
    assert model.is_calibrated and not model.training
    print(weights_hash(model))
    want = load_file(f"{folder}/want.safetensors")
    with torch.no_grad():
        got = {
            "latent": model.encode(want["image"]).latent_dist.mode(),
            "picture": model.decode(want["latent"]).sample,
            "preview": model.preview(want["latent"]),
        }
    for name, value in got.items():  # other addresses pick other kernels: equal up to rounding
        torch.testing.assert_close(value, want[name], rtol=1e-5, atol=1e-5)
"""


@torch.no_grad()
def test_a_fresh_process_loads_the_same_model(tmp_path: Path) -> None:
    folders, hashes = [], []
    for name, make in BASES.items():
        model, image, folder = calibrated(make(), detail_channels=6), images(), tmp_path / name
        model.save_pretrained(folder)
        latent = model.encode(image).latent_dist.mode().contiguous()
        tensors = {"image": image, "latent": latent}
        tensors |= {"picture": model.decode(latent).sample, "preview": model.preview(latent)}
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "want.safetensors")
        folders.append(str(folder))
        hashes.append(weights_hash(model))
    command = [sys.executable, "-c", FRESH_PROCESS, *folders]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.split() == hashes  # config and weights, bit for bit
    assert "will be ignored" not in answer.stderr  # every stored config entry is an argument


@torch.no_grad()
def test_half_precision(base: Any) -> None:
    model, image = calibrated(base), images()
    latent = model.encode(image).latent_dist.mode()
    picture = model.decode(latent).sample
    model.to(torch.bfloat16)
    half = model.encode(image.bfloat16()).latent_dist.mode()
    assert half.dtype == torch.bfloat16
    small = F.interpolate(image.bfloat16(), scale_factor=0.5, mode="bicubic", align_corners=False)
    assert torch.equal(half[:, :CHANNELS], latent_of(base.to(torch.bfloat16), small))
    assert_close(half.float(), latent, 0.1)
    got = model.decode(latent.bfloat16()).sample
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), picture, 0.1)
    assert AutoencoderDA.from_base(base).dtype == torch.bfloat16  # the base's precision


@pytest.mark.parametrize("detail_channels", [6, 10])
@torch.no_grad()
def test_detail_need_not_be_a_multiple_of_the_base(base: Any, detail_channels: int) -> None:
    model, image = calibrated(base, detail_channels=detail_channels), images()
    latent = model.encode(image).latent_dist.mode()
    assert latent.shape == (2, CHANNELS + detail_channels, 4, 6)
    assert model.decode(latent).sample.shape == image.shape


@torch.no_grad()
def test_scale_four(base: Any) -> None:
    image = images(2, 32, 48)
    model = calibrated(base, image, scale=4, detail_channels=8)
    posterior = model.encode(image).latent_dist
    small = F.interpolate(image, scale_factor=0.25, mode="bicubic", align_corners=False)
    assert torch.equal(posterior.mode()[:, :CHANNELS], latent_of(base, small))
    assert posterior.mode().shape == (2, 12, 4, 6)
    assert model.decode(posterior.mode()).sample.shape == image.shape
    assert len(model.config.block_out_channels) == 4  # f2 * 4 = 8


def test_config_has_what_stock_pipelines_read(base: Any) -> None:
    model = AutoencoderDA.from_base(base)
    config = model.config
    assert 2 ** (len(config.block_out_channels) - 1) == model.compression == 4
    assert config.latent_channels == 2 * CHANNELS
    assert config.scaling_factor == base.config.scaling_factor
    assert config.shift_factor == base.config.get("shift_factor")
    assert config.in_channels == config.out_channels == 3
    if base.config.get("latents_mean") is not None:
        assert config.latents_mean == [*base.config.latents_mean, 0.0, 0.0, 0.0, 0.0]
        assert config.latents_std == [*base.config.latents_std, 1.0, 1.0, 1.0, 1.0]


def test_base_image_is_clamped_where_the_family_says_so() -> None:
    checks = torch.ones(1, 3, 16, 16)
    checks[..., ::3] = -1  # bicubic overshoots at hard edges
    free = AutoencoderDA.from_base(kl()).base_image(checks)
    clamped = AutoencoderDA.from_base(kl(), clamp_base_image=True).base_image(checks)
    assert free.abs().max() > 1.01
    assert torch.equal(clamped, free.clamp(-1, 1))


@torch.no_grad()
def test_uncalibrated_model_says_so() -> None:
    model = AutoencoderDA.from_base(kl())
    with pytest.warns(UserWarning, match="not been trained and calibrated.*not normalised"):
        latent = model.encode(images()).latent_dist.mode()
    with pytest.warns(UserWarning, match="not been trained and calibrated.*draws noise"):
        model.decode(latent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(images())  # once is enough
        model.decode(latent)
        model.preview(latent)
    with pytest.raises(ValueError, match="Cannot normalise latents: .* not been measured"):
        _ = model.raw_scaling


def test_impossible_statistics_are_refused() -> None:
    model, ones = AutoencoderDA.from_base(kl()), torch.ones(CHANNELS)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\), expected \(4,\)"):
        model.calibrate(ones[:3], ones)
    for std in (torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0, torch.nan])):
        with pytest.raises(ValueError, match="dead or diverged channel"):
            model.calibrate(ones, std)
    assert not model.is_calibrated


def test_wrong_sizes_and_widths_are_explained() -> None:
    model = calibrated(kl())
    for height, width in ((18, 16), (16, 30)):
        with pytest.raises(ValueError, match=rf"multiples of 4 .* got {height} x {width}"):
            model.encode(torch.zeros(1, 3, height, width))
    for function in (model.decode, model.preview):
        with pytest.raises(ValueError, match=r"expected 8 channels \(4 base \+ 4 detail\)"):
            function(torch.zeros(1, 4, 4, 4))


def test_impossible_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Cannot use AsymmetricAutoencoderKL .* AutoencoderDC, AutoencoderKL"):
        AutoencoderDA.from_base(AsymmetricAutoencoderKL())
    with pytest.raises(ValueError, match="scale 2 and 4; got 3"):
        AutoencoderDA.from_base(kl(), scale=3)
    with pytest.raises(ValueError, match="detail_channels divisible by 2"):
        AutoencoderDA.from_base(kl(), detail_channels=5)


def test_stored_name_never_moves() -> None:
    assert AutoencoderDA.__module__ == "davae"


@torch.no_grad()
def test_moments_run_each_encoder_once_and_no_decoder() -> None:
    model, ran = calibrated(kl()), []
    parts = {
        "base encoder": model.base_vae.encoder,
        "detail encoder": model.encoder,
        "base decoder": model.base_vae.decoder,
        "decoder": model.decoder,
    }
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.moments(images(2))
    assert sorted(ran) == ["base encoder", "detail encoder"]


@torch.no_grad()
def test_the_upgrade_keeps_the_pretrained_statistics_of_the_base_channels(tmp_path: Path) -> None:
    """Measured anew on half-size images they would differ, and the transformer would see other base latents."""
    config = {"latent_channels": 8, "block_out_channels": (4,), "norm_num_groups": 4, "layers_per_block": 1}
    mean, std = torch.randn(8).tolist(), (0.5 + torch.rand(8)).tolist()
    base = AutoencoderKL(**config, scaling_factor=1.0, latents_mean=mean, latents_std=std).eval()
    upgraded = AutoencoderDA.from_base(base, scale=2, detail_channels=24).eval()
    upgraded.calibrate(torch.randn(24), 0.5 + torch.rand(24))
    upgraded.save_pretrained(tmp_path)
    upgraded = AutoencoderDA.from_pretrained(tmp_path).eval()
    before, after = scaling_of(base), scaling_of(upgraded)
    assert (before.shift, before.scale) == (after.shift[:8], after.scale[:8])
    assert (before.shift, before.scale) == (tuple(mean), tuple(1 / value for value in std))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bicubic", align_corners=False)
    seen = before.normalise(base.encode(small).latent_dist.mode())
    assert_close(after.normalise(upgraded.encode(images).latent_dist.mode())[:, :8], seen, 1e-6)
