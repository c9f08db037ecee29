"""What the decoder of an `AutoencoderDA` takes: order of the parts, units of the base. Outside nothing changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from davae.models.blocks import DetailUpBlock
from davae.models.declared_scaling import scaling_of
from models.families import BASES, CHANNELS, calibrated, flux2, images, tiny, up_block


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Any:
    return BASES[request.param]()


def shortcut_weight(block: DetailUpBlock) -> Tensor:
    """The block's shortcut as the weight [F s^2, C + D, 3, 3] of a convolution."""
    weight = torch.zeros_like(block.conv.weight)
    if block.shortcut_proj is not None:
        weight[..., 1, 1] = block.shortcut_proj.weight[..., 0, 0]
    else:
        outputs = torch.arange(len(weight))
        weight[outputs, outputs // block.repeats, 1, 1] = 1
    return weight


def folded(block: DetailUpBlock) -> Tensor:
    """The block as one convolution, shortcut included."""
    return block.conv.weight + shortcut_weight(block)


def twin(model: AutoencoderDA, base: Any, **settings: Any) -> AutoencoderDA:
    """A model of other conventions with the same weights and detail statistics."""
    other = AutoencoderDA.from_base(base, detail_channels=model.layout.detail_channels, **settings).eval()
    other.load_state_dict(model.state_dict())
    other.calibrate(torch.tensor(model.config.detail_mean), torch.tensor(model.config.detail_std))
    return other


@pytest.mark.parametrize("detail_channels", [4, 6], ids=["free shortcut", "learned shortcut"])
@torch.no_grad()
def test_detail_first_is_a_permutation_inside_the_decoder(base: Any, detail_channels: int) -> None:
    model, image = calibrated(base, detail_channels=detail_channels), images()
    if detail_channels == 6:
        up_block(model).shortcut_proj.weight.normal_(std=0.1)
    other = twin(model, base, decoder_order="detail_first")
    latent = model.encode(image).latent_dist.mode()
    assert torch.equal(other.encode(image).latent_dist.mode(), latent)  # base first and raw
    want = model.decode(latent).sample
    assert (other.decode(latent).sample - want).abs().max() > 1e-3 * want.abs().max()
    weight, block = folded(up_block(model)), up_block(other)
    permuted = torch.cat([weight[:, CHANNELS:], weight[:, :CHANNELS]], dim=1)
    block.conv.weight.copy_(permuted - shortcut_weight(block))
    assert_close(other.decode(latent).sample, want)
    assert_close(other(image).sample, want)
    assert torch.equal(other.preview(latent), model.preview(latent))


@torch.no_grad()
def test_scaled_units_are_those_of_the_base(base: Any) -> None:
    model, image = calibrated(base), images()
    other = twin(model, base, base_units="scaled")
    latent = model.encode(image).latent_dist.mode()
    assert torch.equal(other.encode(image).latent_dist.mode(), latent)  # raw outside
    raw, detail, _ = model.moments(image)
    scaled = scaling_of(base).normalise(raw)
    # Only tiny autoencoders come with the units of their transformer.
    assert torch.equal(scaled, raw) == ("Tiny" in type(base).__name__ or "TAE" in type(base).__name__)
    want = model.decoder(torch.cat([scaled, detail], dim=1))
    assert_close(other.decode(latent).sample, want)
    output = other(image)
    assert_close(output.sample, want)
    assert torch.equal(output.base, scaled)  # what the alignment pulls to
    assert torch.equal(other.preview(latent), model.preview(latent))


@pytest.mark.parametrize("name", ["sd", "vavae"])
@torch.no_grad()
def test_weights_divided_by_the_scale_take_scaled_units(name: str) -> None:
    base = BASES[name]()
    if name == "vavae":
        base.register_to_config(latents_mean=[0.0] * CHANNELS)  # the zeros beyond the rim do not follow a shift
    model, image = calibrated(base), images()
    other = twin(model, base, base_units="scaled", decoder_order="detail_first")
    weight, block = folded(up_block(model)), up_block(other)
    weight[:, :CHANNELS] /= torch.tensor(scaling_of(base).scale).view(1, -1, 1, 1)
    block.conv.weight.copy_(torch.cat([weight[:, CHANNELS:], weight[:, :CHANNELS]], dim=1) - shortcut_weight(block))
    latent = model.encode(image).latent_dist.mode()
    assert_close(other.decode(latent).sample, model.decode(latent).sample)


@torch.no_grad()
def test_a_saved_model_keeps_its_conventions(tmp_path: Path) -> None:
    model = calibrated(flux2(), decoder_order="detail_first", base_units="scaled")
    latent = model.encode(images()).latent_dist.mode()
    model.save_pretrained(tmp_path)
    loaded = AutoencoderDA.from_pretrained(tmp_path)
    assert loaded.config.decoder_order == "detail_first"
    assert loaded.config.base_units == "scaled"
    assert_close(loaded.decode(latent).sample, model.decode(latent).sample, 1e-5)


def test_other_conventions_are_refused() -> None:
    with pytest.raises(ValueError, match="base_units 'norm'; allowed: raw, scaled"):
        AutoencoderDA.from_base(tiny(), base_units="norm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decoder_order 'first'; allowed: base_first, detail_first"):
        AutoencoderDA.from_base(tiny(), decoder_order="first")  # type: ignore[arg-type]
