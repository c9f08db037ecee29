"""Checkpoints of the method's authors, both branches: the reference's numbers and every public key."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from davae.convert import from_davae_imagenet, from_davae_sd3
from davae.convert.from_davae_imagenet import convert_davae_imagenet
from davae.convert.from_davae_sd3 import convert_davae_sd3
from davae.convert.from_ldm import convert_ldm
from davae.convert.keys import ConversionError
from davae.convert.unpickle import Statistics
from davae.models.declared_scaling import scaling_of

State = dict[str, Tensor]
BaseOf = Callable[[State], State]
RAW = Statistics((0.0,) * 16, (1.0,) * 16)
"""Statistics that leave 4 + 12 channels as they are."""


def base_model(state: State, base_of: BaseOf) -> AutoencoderKL:
    return convert_ldm(base_of(state))[0]


def values(model: AutoencoderDA) -> list[Tensor]:
    return list(model.state_dict().values())


@torch.no_grad()
def test_the_imagenet_branch_is_the_references(
    golden: Callable[[str], State], imagenet: State, base_of: BaseOf
) -> None:
    tensors = golden("davae_tokenizer")
    base = base_model(imagenet, base_of)
    model, report = convert_davae_imagenet(imagenet, base, RAW)
    image = tensors["in.x"]
    assert_close(model.base_image(image), tensors["out.x_down"])
    z_base, mean, logvar = model.moments(image)
    assert_close(z_base, tensors["out.z_base"])
    assert_close(mean, tensors["out.detail_mean"])
    assert_close(logvar, tensors["out.detail_logvar"])
    assert_close(model.layout.group_mean(mean), tensors["out.group_mean"])
    assert_close(model.encode(image).latent_dist.mode(), tensors["out.z"])
    assert_close(model.decode(tensors["out.z"]).sample, tensors["out.decode"])
    zero = tensors["out.z"].clone()
    zero[:, 4:] = 0
    assert_close(model.decode(zero).sample, tensors["out.decode_zero_detail"])
    small = base.decode(tensors["out.z_base"]).sample
    assert_close(model.base_vae.decode(tensors["out.z_base"]).sample, small, 1e-6)
    assert dict(report.dropped) == {
        "da.encoder.conv_out.weight": "bypassed by the detail down block",
        "da.encoder.conv_out.bias": "bypassed by the detail down block",
        "da.decoder.conv_in.weight": "bypassed by the detail up block",
        "da.decoder.conv_in.bias": "bypassed by the detail up block",
    }


@torch.no_grad()
def test_the_text_to_image_branch_is_the_references(golden: Callable[[str], State], sd3: State) -> None:
    tensors = golden("sd3_tokenizer")
    statistics = Statistics(tuple(tensors["in.norm_mean"].tolist()), tuple(tensors["in.norm_std"].tolist()))
    model, _ = convert_davae_sd3(sd3, statistics, norm_num_groups=4)
    image = 2 * tensors["in.x"] - 1
    assert_close(model.base_image(image), 2 * tensors["out.x_down"] - 1)
    z_base, mean, logvar = model.moments(image)
    assert_close(scaling_of(model.base_vae).normalise(z_base), tensors["out.base_latent"])
    assert_close(mean, tensors["out.detail_mean"])
    assert_close(logvar, tensors["out.detail_logvar"])
    output = model(image)
    assert_close(output.base, tensors["out.base_latent"])  # what the detail is aligned to, in these units
    assert_close(model.layout.group_mean(output.detail), tensors["out.alignment_hidden"])
    assert_close(output.sample, tensors["out.decode_raw"])
    # What a transformer sees, in the order of the authors' wrapper: detail first.
    scaling = scaling_of(model)
    seen = scaling.normalise(model.encode(image).latent_dist.mode())
    assert_close(seen[:, [4, 5, 6, 7, 0, 1, 2, 3]], tensors["out.wrapper_encode_normalised"])
    wrapper = tensors["out.wrapper_encode_normalised"][:, [4, 5, 6, 7, 0, 1, 2, 3]]
    drawn = model.decode(scaling.denormalise(wrapper)).sample
    assert_close(((drawn + 1) / 2).clamp(0, 1), tensors["out.wrapper_decode_of_encode"])
    assert_close(((drawn + 1) / 2).clamp(0, 1), tensors["out.decode"])
    small = model.base_vae.decode(z_base).sample
    assert_close(((small + 1) / 2).clamp(0, 1), tensors["out.teacher_decode_of_base"])


def test_every_key_of_the_imagenet_checkpoint_has_a_place(full_size: Callable[[str], State], base_of: BaseOf) -> None:
    def empty(state: State) -> State:  # values are compared, so they must exist; a broadcast zero takes no memory
        return {key: torch.zeros((), dtype=torch.bfloat16).expand(value.shape) for key, value in state.items()}

    base, _ = convert_ldm(empty(full_size("vavae_f16d32")))
    state = empty(full_size("davae_imagenet_f32d128"))
    model, report = convert_davae_imagenet(state, base)
    dead = 294_976 + 147_968  # the two bypassed convolutions
    trained = [*model.encoder.parameters(), *model.decoder.parameters()]
    assert sum(weight.numel() for weight in trained) == 72_806_643 - dead
    assert sum(weight.numel() for weight in model.base_vae.parameters()) == 69_836_067
    sources = {key for key in report.renamed if not key.startswith("base:")}
    assert sources | report.dropped.keys() == state.keys()
    assert len(report.dropped) == 4 + sum(key.startswith("loss.") for key in state)
    assert (model.config.scale, model.config.detail_channels, model.config.latent_channels) == (2, 96, 128)
    assert (model.compression, model.dtype) == (32, torch.bfloat16)


def test_every_key_of_the_text_to_image_checkpoint_has_a_place(full_size: Callable[[str], State]) -> None:
    state = full_size("davae_sd3_f16d32")
    state["discriminator.conv.weight"] = torch.empty(1, device="meta")
    model, report = convert_davae_sd3(state)
    assert {*report.renamed, *report.loaded, *report.dropped} == state.keys()
    assert len(report.dropped) == 4 + 1
    config = model.config
    assert (config.scale, config.detail_channels, config.latent_channels, model.compression) == (2, 16, 32, 16)
    assert (config.scaling_factor, config.shift_factor) == (1.5305, 0.0609)
    assert config.base_config["block_out_channels"] == [128, 256, 512, 512]
    assert not config.base_config["use_quant_conv"]
    encoder = sum(weight.numel() for weight in model.encoder.parameters())
    assert encoder == 34_274_208 - (32 * 512 * 9 + 32) + 36_872


SPELLINGS = {
    "of DDP": lambda key: f"module.{key}",
    "older": lambda key: key.replace("da.da_down", "da.dc_down").replace("da.da_up", "da.dc_up"),
    "oldest": lambda key: key.replace("da.da_", "dc.dc_") if "da.da_" in key else key.replace("da.", "dc."),
    "inside a model": lambda key: f"model.{SPELLINGS['oldest'](key)}" if key.startswith("da.") else key,
    "new in old": lambda key: key.replace("da.", "dc.", 1) if key.startswith("da.") else key,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_older_spellings_are_the_same_checkpoint(imagenet: State, base_of: BaseOf, spelling: str) -> None:
    base = base_model(imagenet, base_of)
    want, _ = convert_davae_imagenet(imagenet, base)
    state = {SPELLINGS[spelling](key): value for key, value in imagenet.items()}
    assert from_davae_imagenet.recognises(state)
    assert not from_davae_sd3.recognises(state)
    got, _ = convert_davae_imagenet(state, base)
    assert all(map(torch.equal, values(got), values(want)))


def test_detail_networks_alone_take_the_whole_base(imagenet: State, base_of: BaseOf) -> None:
    base = base_model(imagenet, base_of)
    want, _ = convert_davae_imagenet(imagenet, base)
    state = {key.removeprefix("da.").replace("da_", "dc_"): v for key, v in imagenet.items() if key[:3] == "da."}
    assert {"dc_down.conv.weight", "encoder.conv_in.weight"} <= state.keys()
    assert from_davae_imagenet.recognises(state)
    assert not from_davae_sd3.recognises(state)
    got, report = convert_davae_imagenet(state, base)
    assert all(map(torch.equal, values(got), values(want)))
    assert "base: taken unchecked" in str(report)


def test_another_base_is_refused(imagenet: State, base_of: BaseOf) -> None:
    state = base_of(imagenet)
    state["encoder.mid.block_1.conv1.bias"] = state["encoder.mid.block_1.conv1.bias"] + 1e-3
    with pytest.raises(ConversionError, match=r"not the one .* 1 of \d+ weights .*\(encoder\.mid_block\.resnets\.0"):
        convert_davae_imagenet(imagenet, convert_ldm(state)[0])


def test_a_base_in_half_precision_is_the_same_one(imagenet: State, base_of: BaseOf) -> None:
    base = convert_ldm({key: value.half() for key, value in base_of(imagenet).items()})[0]
    model, _ = convert_davae_imagenet(imagenet, base)
    assert {value.dtype for value in values(model)} == {torch.float32}
    want = imagenet["base_encoder.conv_in.weight"]
    assert torch.equal(model.base_vae.encoder.conv_in.weight, want)  # the checkpoint's own, not rounded


def test_a_base_encoder_with_holes_is_not_patched(imagenet: State, base_of: BaseOf) -> None:
    base = base_model(imagenet, base_of)
    del imagenet["base_encoder.norm_out.weight"]
    with pytest.raises(ConversionError, match=r"1 missing \(base_vae\.encoder\.conv_norm_out\.weight\)"):
        convert_davae_imagenet(imagenet, base)


def test_statistics_of_all_channels_are_split(imagenet: State, base_of: BaseOf) -> None:
    base = base_model(imagenet, base_of)
    base.register_to_config(latents_mean=[9.0] * 4, latents_std=[9.0] * 4)
    mean, std = torch.arange(16) / 10, 1 + torch.arange(16) / 10
    model, report = convert_davae_imagenet(imagenet, base, Statistics(tuple(mean.tolist()), tuple(std.tolist())))
    raw = torch.randn(2, 16, 3, 3)
    seen = scaling_of(model).normalise(model.store(raw[:, :4], raw[:, 4:]))
    assert_close(seen, (raw - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1), 1e-5)
    assert "12 detail channels: calibrated" in str(report)


def test_statistics_of_the_detail_leave_the_base_its_own(imagenet: State, base_of: BaseOf) -> None:
    base = base_model(imagenet, base_of)
    base.register_to_config(latents_mean=[9.0] * 4, latents_std=[3.0] * 4)
    model, _ = convert_davae_imagenet(imagenet, base, Statistics((0.5,) * 12, (2.0,) * 12))
    assert model.config.latents_mean[:4] == [9.0] * 4
    assert model.config.detail_std == [2.0] * 12
    with pytest.raises(ConversionError, match=r"of 4 channels; allowed: 16 \(base, then detail\), 12 \(detail\)"):
        convert_davae_imagenet(imagenet, base, Statistics((0.0,) * 4, (1.0,) * 4))


def test_without_any_statistics_the_scaling_is_undeclared(imagenet: State, base_of: BaseOf) -> None:
    model, report = convert_davae_imagenet(imagenet, base_model(imagenet, base_of))
    assert "latent scaling: undeclared" in str(report)
    assert "12 detail channels: not calibrated" in str(report)
    image = torch.zeros(1, 3, 16, 16)
    assert model(image).sample.shape == image.shape  # training needs no scaling
    with pytest.warns(UserWarning, match="not normalised"), pytest.raises(ValueError, match="cannot be normalised"):
        model.encode(image)


def test_without_statistics_the_model_is_uncalibrated_and_says_so(sd3: State) -> None:
    model, report = convert_davae_sd3(sd3, norm_num_groups=4)
    assert not model.is_calibrated
    assert "4 detail channels: not calibrated" in str(report)
    assert "latent scaling: factor 1.5305, shift 0.0609" in str(report)
    with pytest.raises(ConversionError, match="of 8 channels, the checkpoint has 4 detail channels"):
        convert_davae_sd3(sd3, Statistics((0.0,) * 8, (1.0,) * 8), norm_num_groups=4)


def test_a_checkpoint_without_a_base_latent_is_refused(sd3: State, imagenet: State, base_of: BaseOf) -> None:
    sd3["dc_down.conv.weight"] = torch.zeros(4, 16, 3, 3)  # 16 moments of 8 channels, none of them the base's
    with pytest.raises(ConversionError, match=r"'da_mode: full'.*cannot start from it.*'da_mode: diff'"):
        convert_davae_sd3(sd3, norm_num_groups=4)
    base = base_model(imagenet, base_of)
    imagenet["da.da_down.conv.weight"] = torch.zeros(8, 32, 3, 3)
    with pytest.raises(ConversionError, match="da_mode: full"):
        convert_davae_imagenet(imagenet, base)


def test_blocks_of_no_known_variant_are_refused(sd3: State) -> None:
    sd3["dc_down.conv.weight"] = torch.zeros(8, 16, 3, 3)  # one strided convolution to all moments
    with pytest.raises(ConversionError, match=r"fit no known variant: down block \[8, 16, 3, 3\]"):
        convert_davae_sd3(sd3, norm_num_groups=4)


@pytest.mark.parametrize("key", ["dc_up.conv.weight", "original_vae_model.vae.encoder.conv_out.weight"])
def test_a_key_that_the_config_needs_is_named(sd3: State, key: str) -> None:
    del sd3[key]
    with pytest.raises(ConversionError, match=f"lack {key.removeprefix('original_vae_model.vae.')}"):
        convert_davae_sd3(sd3, norm_num_groups=4)


def test_missing_unexpected_and_misshapen_keys_are_named(sd3: State, imagenet: State, base_of: BaseOf) -> None:
    base = base_model(imagenet, base_of)
    del sd3["vae.encoder.conv_norm_out.bias"]
    sd3["vae.quant_conv.weight"] = torch.zeros(8, 8, 1, 1)
    sd3["dc_up.conv.bias"] = torch.zeros(3)
    with pytest.raises(ConversionError) as error:
        convert_davae_sd3(sd3, norm_num_groups=4)
    assert "1 missing (encoder.conv_norm_out.bias)" in str(error.value)
    assert "1 unexpected (vae.quant_conv.weight)" in str(error.value)
    assert "1 misshapen (dc_up.conv.bias [3], expected [64])" in str(error.value)
    imagenet["dc.da_down.conv.bias"] = imagenet["da.da_down.conv.bias"]
    del imagenet["da.da_down.shortcut_proj.weight"]
    with pytest.raises(ConversionError) as error:
        convert_davae_imagenet(imagenet, base)
    assert "1 claimed twice (encoder.conv_out.conv.bias)" in str(error.value)
    assert "1 missing (encoder.conv_out.shortcut_proj.weight)" in str(error.value)
