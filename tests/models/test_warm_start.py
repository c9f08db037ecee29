"""A warm start: at step 0 the upgrade computes what the base computes at full resolution."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from models.families import (
    BASES,
    CHANNELS,
    dc,
    down_block,
    flux2,
    images,
    latent_of,
    sd,
    sd3,
    shrink,
    smooth_images,
    taef2,
    tiny,
    up_block,
)

PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}
OPEN: dict[str, Callable[[], Any]] = {
    "tiny": tiny,
    "taef2": taef2,
    "sd3": sd3,
    "flux2 without quant convs": lambda: flux2(**PLAIN),
    "dc": dc,
}


@pytest.fixture(params=OPEN)
def base(request: pytest.FixtureRequest) -> Any:
    return OPEN[request.param]()


def warm(base: Any, detail_channels: int, scale: int = 2) -> AutoencoderDA:
    return AutoencoderDA.from_base(base, scale=scale, detail_channels=detail_channels, warm=True).eval()


def written_channels(detail_channels: int, scale: int) -> list[int]:
    """Base channels that the detail has room for: spread evenly."""
    room = min(detail_channels // scale**2, CHANNELS)
    return [row * CHANNELS // room for row in range(room)]


@pytest.mark.parametrize("image", [images, smooth_images])
@torch.no_grad()
def test_with_room_for_all_it_is_the_base_at_full_resolution(base: Any, image: Callable[..., Tensor]) -> None:
    model, x = warm(base, 4 * CHANNELS), image()
    got, want = model(x).sample, base.decode(latent_of(base, x)).sample
    assert_close(got, want)  # rim included: a maximum
    assert (got - want).square().mean() < 1e-8 * want.var()  # as if there were no other light in the image
    model.calibrate(torch.linspace(-1, 1, 4 * CHANNELS), torch.linspace(0.5, 2, 4 * CHANNELS))
    assert_close(model.decode(model.encode(x).latent_dist.mode()).sample, want)


@pytest.mark.parametrize(("scale", "detail_channels"), [(2, 4), (2, 8), (2, 12), (2, 16), (2, 24), (4, 16), (4, 64)])
@torch.no_grad()
def test_channels_without_room_come_from_the_base_latent(base: Any, scale: int, detail_channels: int) -> None:
    model, x = warm(base, detail_channels, scale), images(1, 32, 48)
    output, full = model(x), latent_of(base, x)
    written = written_channels(detail_channels, scale)
    phases = F.pixel_unshuffle(full[:, written], scale)
    assert_close(output.detail_mean[:, : phases.shape[1]], phases)
    assert not output.detail_mean[:, phases.shape[1] :].any()
    assert (output.detail_logvar == -6).all()
    mixed = F.interpolate(latent_of(base, shrink(x, scale)), scale_factor=scale, mode="nearest")
    mixed[:, written] = full[:, written]
    assert_close(output.sample, base.decode(mixed).sample)


@torch.no_grad()
def test_the_start_is_aligned() -> None:
    base = tiny()
    model, x = warm(base, 4 * CHANNELS), images()
    assert_close(model.layout.group_mean(model(x).detail), F.avg_pool2d(latent_of(base, x), 2))


@pytest.mark.parametrize("detail_channels", [4, 8, 12])
@pytest.mark.parametrize("make", [tiny, taef2])
@torch.no_grad()
def test_less_room_is_still_closer_than_random_blocks(make: Callable[[], Any], detail_channels: int) -> None:
    base, x = make(), smooth_images()
    want = base.decode(latent_of(base, x)).sample
    cold = AutoencoderDA.from_base(base, detail_channels=detail_channels).eval()
    errors = [(model(x).sample - want).square().mean().item() for model in (warm(base, detail_channels), cold)]
    assert errors[0] < 0.5 * errors[1], errors


def test_everything_learns_from_the_first_step(base: Any) -> None:
    model = warm(base, 4 * CHANNELS).train()
    x = images()
    output = model(x, torch.randn(2, 4 * CHANNELS, 4, 6))
    (output.sample - x).square().mean().backward()
    for weight in (
        down_block(model).conv.weight,
        down_block(model).shortcut_proj.weight,
        up_block(model).conv.weight,
    ):
        assert weight.grad.any()


@torch.no_grad()
def test_a_saved_start_is_the_same_start(base: Any, tmp_path: Path) -> None:
    model, x = warm(base, 4 * CHANNELS), images()
    model.save_pretrained(tmp_path)
    loaded = AutoencoderDA.from_pretrained(tmp_path)
    assert loaded.config.learned_shortcut
    assert_close(loaded(x).sample, base.decode(latent_of(base, x)).sample)


def test_without_it_the_shortcut_stays_free_of_parameters() -> None:
    model = AutoencoderDA.from_base(tiny())
    assert not model.config.learned_shortcut
    assert down_block(model).shortcut_proj is None
    assert down_block(warm(tiny(), 4)).shortcut_proj is not None


@torch.no_grad()
def test_half_precision_and_no_memory() -> None:
    base = tiny()
    x = images()
    want = base.decode(latent_of(base, x)).sample
    model = warm(base.to(torch.bfloat16), 16)
    assert model.dtype == torch.bfloat16
    assert (model.float()(x).sample - want).square().mean() < 0.01 * want.var()
    with torch.device("meta"):
        assert warm(sd3(), 16).device.type == "meta"


@pytest.mark.parametrize("name", ["sd", "vavae", "flux2"])
def test_quant_convs_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match="A warm start needs .* one convolution each; .* quant convs .* Start without"
    ):
        warm(BASES[name](), 16)


@pytest.mark.parametrize("switch", PLAIN)
def test_one_quant_conv_is_enough(switch: str) -> None:
    with pytest.raises(ValueError, match="AutoencoderKL has quant convs"):
        warm(sd(**{switch: False}), 16)


def test_other_conventions_are_refused() -> None:
    with pytest.raises(ValueError, match="got decoder_order 'detail_first' and base_units 'raw'. Use the defaults"):
        AutoencoderDA.from_base(tiny(), decoder_order="detail_first", warm=True)
    with pytest.raises(ValueError, match="got decoder_order 'base_first' and base_units 'scaled'. Use the defaults"):
        AutoencoderDA.from_base(tiny(), base_units="scaled", warm=True)


@pytest.mark.parametrize(("scale", "detail_channels"), [(2, 2), (2, 6), (4, 8), (4, 24)])
def test_half_a_channel_is_refused(scale: int, detail_channels: int) -> None:
    with pytest.raises(ValueError, match=f"{scale**2} detail channels each at scale {scale}; got {detail_channels}"):
        warm(tiny(), detail_channels, scale)
