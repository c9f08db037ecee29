"""LDM and VA-VAE checkpoints: the reference's numbers, every public size, and what does not fit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from conftest import assert_close
from davae.convert.from_ldm import convert_ldm, recognises, rename
from davae.convert.keys import ConversionError
from davae.convert.unpickle import Statistics
from davae.models.declared_scaling import scaling_of

State = dict[str, Tensor]


@torch.no_grad()
def test_a_converted_autoencoder_is_the_references(golden: Callable[[str], State], vavae: State) -> None:
    tensors = golden("ldm_autoencoder")
    model, report = convert_ldm(vavae)
    posterior = model.encode(tensors["in.x"]).latent_dist
    assert_close(posterior.parameters, tensors["out.moments"])
    assert_close(posterior.mode(), tensors["out.mean"])
    assert_close(posterior.logvar, tensors["out.logvar"])
    assert_close(model.decode(posterior.mode()).sample, tensors["out.reconstruction"])
    assert_close(model.decode(tensors["in.z"]).sample, tensors["out.decode"])
    assert not model.training
    assert {*report.loaded, *report.renamed} == vavae.keys()
    assert not report.dropped


@torch.no_grad()
def test_a_renamed_residual_block_is_the_references(golden: Callable[[str], State]) -> None:
    tensors = golden("ldm_resblock")
    block = ResnetBlock2D(in_channels=64, out_channels=32, temb_channels=None, groups=32, eps=1e-6)
    prefix = "decoder.up.0.block.0."
    weights = {
        rename(prefix + key.removeprefix("weights."), levels=1).removeprefix("decoder.up_blocks.0.resnets.0."): value
        for key, value in tensors.items()
        if key.startswith("weights.")
    }
    block.load_state_dict(weights, strict=True)
    assert_close(block(tensors["in.x"], temb=None), tensors["out.y"])


@pytest.mark.parametrize(("channels", "parameters"), [(16, 69_610_963), (32, 69_836_067), (64, 70_293_955)])
def test_every_key_of_the_public_vavaes_has_a_place(
    full_size: Callable[[str], State], channels: int, parameters: int
) -> None:
    state = full_size("vavae_f16d32")
    for key, shape in {
        "encoder.conv_out.weight": (2 * channels, 512, 3, 3),
        "encoder.conv_out.bias": (2 * channels,),
        "decoder.conv_in.weight": (512, channels, 3, 3),
        "quant_conv.weight": (2 * channels, 2 * channels, 1, 1),
        "quant_conv.bias": (2 * channels,),
        "post_quant_conv.weight": (channels, channels, 1, 1),
        "post_quant_conv.bias": (channels,),
    }.items():
        state[key] = torch.empty(shape, device="meta")
    model, report = convert_ldm(state)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert {*report.loaded, *report.renamed} == state.keys()
    config = model.config
    assert config.latent_channels == channels
    assert config.block_out_channels == [128, 128, 256, 256, 512]
    assert config.down_block_types == ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"]
    assert config.up_block_types == ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4
    assert config.layers_per_block == 2
    for name, module in model.named_modules():
        if "attentions" in name and hasattr(module, "heads"):
            assert module.heads == 1, name


def test_what_a_training_leaves_is_dropped_with_the_reason(vavae: State) -> None:
    extra = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "foundation_model.model.cls_token": torch.zeros(1),
        "linear_proj.weight": torch.zeros(1),
    }
    model, report = convert_ldm({**vavae, **extra})
    assert report.dropped.keys() == extra.keys()
    assert "dropped 2: loss of its training" in str(report)
    assert "vision model" in report.dropped["foundation_model.model.cls_token"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), convert_ldm(vavae)[0].parameters(), strict=True))


def test_an_autoencoder_inside_a_whole_checkpoint_is_found(vavae: State) -> None:
    state = {f"first_stage_model.{key}": value for key, value in vavae.items()}
    state |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(9)}
    assert recognises(state)
    model, report = convert_ldm(state)
    want, _ = convert_ldm(vavae)
    assert dict(report.dropped) == dict.fromkeys(["model.diffusion_model.out.2.bias", "betas"], "not of this model")
    assert all(torch.equal(value, want.state_dict()[key]) for key, value in model.state_dict().items())


OTHERS: dict[str, dict[str, Any]] = {
    "SD's": {},
    "without quant convs, as SD3 and FLUX": {"use_quant_conv": False, "use_post_quant_conv": False},
    "with one of the quant convs": {"use_post_quant_conv": False},
    "without attention": {"mid_block_add_attention": False},
    "with other depths and widths": {"layers_per_block": 3, "block_out_channels": (4, 8, 8)},
    "with attention at one level of the encoder": {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
    },
    "of grey images": {"in_channels": 1, "out_channels": 1, "latent_channels": 6},
}


def ldm_names(model: AutoencoderKL) -> State:
    """The weights of a diffusers model under LDM's names, attention as 1x1 convolutions."""
    levels = len(model.config.block_out_channels)
    state = {}
    for key, value in model.state_dict().items():
        name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
        name = name.replace("down_blocks.", "down.").replace("downsamplers.0", "downsample")
        name = name.replace("upsamplers.0", "upsample").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("resnets.", "block.").replace("attentions.", "attn.")
        name = name.replace("group_norm", "norm").replace("to_out.0", "proj_out").replace(".to_", ".")
        for level in range(levels):
            name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        state[name] = value[..., None, None] if ".attn" in name and value.ndim == 2 else value
        assert rename(name, levels) == key
    return state


@torch.no_grad()
@pytest.mark.parametrize("other", OTHERS)
def test_the_config_is_read_from_the_shapes(other: str) -> None:
    levels = len(OTHERS[other].get("block_out_channels", (4, 8, 8)))
    settings = {
        "block_out_channels": (4, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 4,
        **OTHERS[other],
    }
    want = AutoencoderKL(**settings).eval()
    got, _ = convert_ldm(ldm_names(want), norm_num_groups=4)
    image = torch.randn(1, want.config.in_channels, 8, 8)
    assert torch.equal(got(image).sample, want(image).sample)
    for name in (*settings, "latent_channels", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        value = want.config[name]
        assert got.config[name] == (list(value) if isinstance(value, tuple) else value), name


def test_attention_that_is_linear_already_is_taken_as_it_is(vavae: State) -> None:
    state = {key: value.flatten(1) if ".attn" in key and value.ndim == 4 else value for key, value in vavae.items()}
    assert state["encoder.mid.attn_1.q.weight"].ndim == 2
    convert_ldm(state)


def test_statistics_become_the_latent_scaling(vavae: State) -> None:
    statistics = Statistics((0.5, 0.0, -1.0, 2.0), (2.0, 1.0, 0.5, 4.0))
    model, report = convert_ldm(vavae, statistics)
    assert model.config.latents_mean == list(statistics.mean)
    assert model.config.latents_std == list(statistics.std)
    assert scaling_of(model).scale == (0.5, 1.0, 2.0, 0.25)
    assert "latents_mean and latents_std of 4 channels" in str(report)
    with pytest.raises(ConversionError, match="statistics are of 3 channels, the latent has 4"):
        convert_ldm(vavae, Statistics((0.0,) * 3, (1.0,) * 3))
    with pytest.raises(ConversionError, match="not both"):
        convert_ldm(vavae, statistics, scaling_factor=0.5)


def test_scalar_scaling_is_what_the_caller_says(vavae: State) -> None:
    model, report = convert_ldm(vavae, scaling_factor=0.3611, shift_factor=0.1159)
    assert (model.config.scaling_factor, model.config.shift_factor) == (0.3611, 0.1159)
    assert "factor 0.3611, shift 0.1159" in str(report)
    with pytest.raises(ConversionError, match="shift alone"):
        convert_ldm(vavae, shift_factor=0.1)


def test_an_unknown_scaling_is_undeclared_and_never_guessed(vavae: State) -> None:
    model, report = convert_ldm(vavae)
    assert model.config.scaling_factor is None
    assert "latent scaling: undeclared" in str(report)
    with pytest.raises(ValueError, match="cannot be normalised"):
        scaling_of(model)


def test_weights_keep_their_dtype_but_doubles(vavae: State) -> None:
    state = {key: value.half() for key, value in vavae.items()}
    state["quant_conv.weight"] = vavae["quant_conv.weight"].double()
    state["quant_conv.bias"] = vavae["quant_conv.bias"].bfloat16()
    weights = convert_ldm(state)[0].state_dict()
    assert weights["encoder.conv_in.weight"].dtype == torch.float16
    assert weights["quant_conv.weight"].dtype == torch.float32
    assert weights["quant_conv.bias"].dtype == torch.bfloat16


def test_the_source_is_left_as_it_is(vavae: State) -> None:
    before = {key: value.clone() for key, value in vavae.items()}
    model, _ = convert_ldm(vavae)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert all(torch.equal(value, before[key]) for key, value in vavae.items())


def test_missing_unexpected_and_misshapen_keys_are_named(vavae: State) -> None:
    del vavae["encoder.mid.block_2.norm1.bias"]
    for number in range(6):
        vavae[f"quantize.{number}.weight"] = torch.zeros(1)
    vavae["decoder.conv_in.weight"] = torch.zeros(32, 7, 3, 3)
    with pytest.raises(ConversionError) as error:
        convert_ldm(vavae)
    text = str(error.value)
    assert "1 missing (encoder.mid_block.resnets.1.norm1.bias)" in text
    assert (
        "6 unexpected (quantize.0.weight, quantize.1.weight, quantize.2.weight, quantize.3.weight and 2 more)" in text
    )
    assert "1 misshapen (decoder.conv_in.weight [32, 7, 3, 3], expected [32, 4, 3, 3])" in text


@pytest.mark.parametrize("key", ["encoder.conv_out.weight", "decoder.conv_out.weight"])
def test_a_key_that_the_config_needs_is_named(vavae: State, key: str) -> None:
    del vavae[key]
    with pytest.raises(ConversionError, match=f"lack {key}, which the config is read from"):
        convert_ldm(vavae)


def test_a_flattened_convolution_is_named(vavae: State) -> None:
    vavae["encoder.conv_in.weight"] = vavae["encoder.conv_in.weight"].flatten()
    with pytest.raises(ConversionError, match=r"encoder\.conv_in\.weight has the shape \[864\]"):
        convert_ldm(vavae)


def test_norm_groups_that_cannot_be_are_explained(vavae: State) -> None:
    with pytest.raises(ConversionError, match=r"24 groups do not divide the widths \[32, 32\].*norm_num_groups"):
        convert_ldm(vavae, norm_num_groups=24)
