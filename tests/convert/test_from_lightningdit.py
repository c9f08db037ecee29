"""LightningDiT checkpoints: the reference's numbers, public sizes, what does not fit, and whole pairs."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

import davae
from conftest import assert_close
from davae.backbones.pair import Pair
from davae.convert.dispatch import convert, detect
from davae.convert.from_lightningdit import check_qk_norm, convert_lightningdit, recognises
from davae.convert.keys import ConversionError
from davae.convert.training_state import read_weights
from davae.core.flow import sigma_shift
from davae.models.declared_scaling import scaling_of
from davae.models.embeddings import rotary_tables, sincos_position_table
from davae.tools.convert import convert_checkpoint

State = dict[str, Tensor]
CASES = {
    "a_base": {"hidden_size": 48, "num_attention_heads": 4, "num_layers": 2},
    "b_qknorm": {"in_channels": 12, "num_attention_heads": 2, "qk_norm": True},
    "c_wo_shift": {"num_attention_heads": 4, "num_layers": 1, "adaln_shift": False},
    "d_patch2": {"num_attention_heads": 2, "patch_size": 2},
}
"""Golden case -> what its config must come to, beside what all share."""


def of(tensors: State, prefix: str = "weights.") -> State:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture
def state(golden: Callable[[str], State]) -> State:
    """A toy checkpoint: 8 channels, 8 x 8 latent, 2 layers of width 48, 4 heads, 10 classes."""
    return of(golden("lightningdit_a_base"))


@pytest.fixture
def vae() -> AutoencoderKL:
    """An f2 autoencoder of 8 channels that says nothing of its latents."""
    return AutoencoderKL(
        latent_channels=8,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=None,
    )


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def statistics_file(path: Path, channels: int = 8, mean: float = 0.5) -> Path:
    """`latents_stats.pt` as LightningDiT's feature extraction writes it."""
    return saved(path, {"mean": torch.full((1, channels, 1, 1), mean), "std": torch.full((1, channels, 1, 1), 2.0)})


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_converted_transformer_is_the_references(golden: Callable[[str], State], case: str) -> None:
    tensors = golden(f"lightningdit_{case}")
    wrapped = {f"module._orig_mod.{key}": value for key, value in of(tensors).items()}
    assert recognises(wrapped)
    model, report = convert_lightningdit(wrapped)
    assert_close(model(tensors["in.x"], tensors["in.t"], tensors["in.y"]).sample, tensors["out.forward"])
    common = {"sample_size": 8, "in_channels": 8, "hidden_size": 32, "num_classes": 10, "qk_norm": False}
    for name, value in {**common, **CASES[case]}.items():
        assert model.config[name] == value, name
    assert not model.training
    assert not model.pos_embed.requires_grad
    assert {*report.renamed, *report.dropped} == set(wrapped)
    assert not report.loaded
    assert list(report.dropped) == ["module._orig_mod.feat_rope.freqs_cos", "module._orig_mod.feat_rope.freqs_sin"]
    assert "position table: equal to the computed one" in str(report)


@torch.no_grad()
def test_a_converted_transformer_widens_as_the_references_does(golden: Callable[[str], State]) -> None:
    tensors = golden("zero_pad")
    base, _ = convert_lightningdit(of(tensors), {"qk_norm": False, "num_attention_heads": 2})
    wide = davae.widen(base, detail_channels=18)
    adapted = of(tensors, "out.adapted.")
    assert wide.state_dict().keys() == adapted.keys()
    for key, value in wide.state_dict().items():
        assert_close(value, adapted[key], 1e-6)
    inputs = (tensors["in.x"][:, :6], tensors["in.t"], tensors["in.y"])
    assert_close(base(*inputs).sample, tensors["out.base_forward"])


@pytest.mark.parametrize(
    ("name", "tensors", "parameters", "config"),
    [
        ("lightningdit_xl", 351, 675_256_736, {"in_channels": 32, "qk_norm": False}),
        ("lightningdit_xl_f32c128", 407, 675_482_048, {"in_channels": 128, "qk_norm": True}),
    ],
)
def test_public_sizes_fit(
    full_size: Callable[[str], State], name: str, tensors: int, parameters: int, config: dict[str, Any]
) -> None:
    state = full_size(name)
    cos, sin = rotary_tables(72, 16)
    state |= {"feat_rope.freqs_cos": cos, "feat_rope.freqs_sin": sin}
    state["pos_embed"] = sincos_position_table(1152, 16)[None]
    assert len(state) == tensors
    model, report = convert_lightningdit(state)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert (len(report.loaded), len(report.dropped)) == (tensors - 2, 2)
    xl = {"num_layers": 28, "hidden_size": 1152, "num_attention_heads": 16, "sample_size": 16, "num_classes": 1000}
    assert {key: model.config[key] for key in {**xl, **config}} == {**xl, **config}


def test_qk_norm_that_was_not_expected_is_refused_with_the_reason(golden: Callable[[str], State]) -> None:
    without, with_norm = of(golden("zero_pad")), of(golden("lightningdit_b_qknorm"))
    with pytest.raises(ConversionError, match=r"on in the model and off in the weights.*another function"):
        convert_lightningdit(without, {"qk_norm": True})
    with pytest.raises(ConversionError, match="off in the model and on in the weights"):
        convert_lightningdit(with_norm, {"qk_norm": False})
    with pytest.raises(ConversionError, match="on in the model and off"):
        check_qk_norm([f"module.{key}" for key in without], expected=True)
    check_qk_norm(without, expected=False)
    check_qk_norm(with_norm, expected=True)


def test_weights_must_agree_with_a_target_config(state: State) -> None:
    target = dict(convert_lightningdit(state)[0].config)
    assert convert_lightningdit(state, target)[0].config["num_attention_heads"] == 4
    with pytest.raises(ConversionError, match="num_attention_heads 4, expected 2; patch_size 1, expected 2"):
        convert_lightningdit(state, {"num_attention_heads": 2, "patch_size": 2})
    with pytest.raises(ConversionError, match="on in the model and off"):
        convert_lightningdit(state, {**target, "qk_norm": True})
    with pytest.raises(ConversionError, match="LightningDiT has no depth; its arguments: sample_size"):
        convert_lightningdit(state, {"depth": 2})


@torch.no_grad()
def test_without_rotary_tables_the_heads_have_to_be_told(golden: Callable[[str], State], state: State) -> None:
    bare = {key: value for key, value in state.items() if not key.startswith("feat_rope.")}
    with pytest.raises(ConversionError, match=r"no rotary tables.*pass num_attention_heads, as in the config"):
        convert_lightningdit(bare)
    tensors = golden("lightningdit_a_base")
    model, report = convert_lightningdit(bare, {"num_attention_heads": 4})
    assert not report.dropped
    assert_close(model(tensors["in.x"], tensors["in.t"], tensors["in.y"]).sample, tensors["out.forward"])
    with pytest.raises(ConversionError, match="divide the width 48 into multiples of 4 channels; got 5 heads"):
        convert_lightningdit(bare, {"num_attention_heads": 5})


def test_the_hint_names_the_heads_of_a_published_size(full_size: Callable[[str], State]) -> None:
    state = {key: value for key, value in full_size("lightningdit_xl").items() if "feat_rope" not in key}
    with pytest.raises(ConversionError, match=r"pass num_attention_heads, 16 \(LightningDiT-XL\)"):
        convert_lightningdit(state)


def test_other_rotary_tables_are_refused(state: State) -> None:
    half = state["feat_rope.freqs_cos"].shape[1] // 2
    state["feat_rope.freqs_cos"] = state["feat_rope.freqs_cos"].roll(half, dims=1)  # column before row
    with pytest.raises(ConversionError, match=r"freqs_cos \[64, 12\] differs by .* in another way"):
        convert_lightningdit(state)
    state["feat_rope.freqs_cos"] = state["feat_rope.freqs_cos"][:16]
    with pytest.raises(ConversionError, match=r"freqs_cos \[16, 12\] differs by inf"):
        convert_lightningdit(state)


def test_half_precision_weights_get_exact_rotary_tables(state: State) -> None:
    model, _ = convert_lightningdit({key: value.bfloat16() for key, value in state.items()})
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert torch.equal(model.feat_rope.freqs_cos, rotary_tables(12, 8)[0])


def test_a_position_table_that_a_running_average_moved_is_kept(state: State) -> None:
    state["pos_embed"] = state["pos_embed"] + 1.5e-4
    model, report = convert_lightningdit(state)
    assert torch.equal(model.pos_embed, state["pos_embed"])
    assert "position table: loaded as it is, up to 0.00015 from the computed one" in str(report)


@pytest.mark.parametrize(
    ("part", "new", "expected"),
    [
        ("norm1.weight", None, r"built without RMSNorm \(blocks.0.norm1.weight missing\)"),
        ("mlp.w12", "mlp.fc1", r"built without SwiGLU \(blocks.0.mlp.w12.weight missing\)"),
    ],
)
def test_other_architectures_are_named(state: State, part: str, new: str | None, expected: str) -> None:
    state = {
        key.replace(part, new or ""): value for key, value in state.items() if new is not None or part not in key
    }
    assert recognises(state)
    with pytest.raises(ConversionError, match=expected):
        convert_lightningdit(state)


def test_missing_unexpected_and_misshapen_keys_are_named(state: State) -> None:
    del state["blocks.1.attn.proj.bias"]
    state["final_layer.linear.bias"] = torch.zeros(7)
    state["blocks.0.attn.relative.weight"] = torch.zeros(1)
    state["module.x_embedder.proj.bias"] = state["x_embedder.proj.bias"]
    with pytest.raises(ConversionError) as error:
        convert_lightningdit(state)
    text = str(error.value)
    assert "1 missing (blocks.1.attn.proj.bias)" in text
    assert "1 unexpected (blocks.0.attn.relative.weight)" in text
    assert "1 claimed twice (x_embedder.proj.bias)" in text
    assert "1 misshapen (final_layer.linear.bias [7], expected [8])" in text


@pytest.mark.parametrize(
    "key", ["pos_embed", "x_embedder.proj.weight", "final_layer.linear.weight", "y_embedder.embedding_table.weight"]
)
def test_a_key_that_the_config_needs_is_named(state: State, key: str) -> None:
    flat = {**state, key: state[key].flatten()}
    with pytest.raises(ConversionError, match=f"{key} has the shape"):
        convert_lightningdit(flat)
    del state[key]
    with pytest.raises(ConversionError, match=f"lack {key}, which the config is read from"):
        convert_lightningdit(state)


def test_positions_that_are_no_square_are_named(state: State) -> None:
    state["pos_embed"] = state["pos_embed"][:, :63]
    with pytest.raises(ConversionError, match="63 positions; expected a square"):
        convert_lightningdit(state)


@pytest.mark.parametrize(
    ("sets", "choice", "taken", "note"),
    [
        (("model", "ema"), None, "ema", "weights: 'ema', the running average"),
        (("model", "ema"), "model", "model", "weights: 'model', as the training left them"),
        (("model",), None, "model", "the file has no running average"),
        (("ema",), "ema", "ema", "weights: 'ema', the running average"),
    ],
)
def test_a_training_checkpoint_becomes_a_folder(
    tmp_path: Path, state: State, sets: tuple[str, ...], choice: str | None, taken: str, note: str
) -> None:
    weights = {
        name: {f"module.{key}": value + index for key, value in state.items()} for index, name in enumerate(sets)
    }
    for content in weights.values():
        content.update({f"module.{key}": state[key] for key in ("feat_rope.freqs_cos", "feat_rope.freqs_sin")})
    rest = {"opt": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "args": Namespace(lr=1e-4), "steps": 7}
    path = saved(tmp_path / "0001000.pt", {**weights, **rest})
    assert detect(read_weights(path)[0]) == "lightningdit"
    report = convert([path], tmp_path / "out", weights=choice, qk_norm=False)
    model = davae.LightningDiT.from_pretrained(tmp_path / "out")
    assert torch.equal(model.final_layer.linear.bias, weights[taken]["module.final_layer.linear.bias"])
    assert note in str(report)
    assert ("no running average" in str(report)) == ("no running average" in note)
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert kept["model"] == "LightningDiT"
    assert {key: kept["dropped"][key] for key in rest} == dict.fromkeys(rest, "state of a training")
    for other in set(sets) - {taken}:
        assert kept["dropped"][other] == f"other weights of the training, '{taken}' was taken"
    assert set(weights[taken]) <= {*kept["loaded"], *kept["renamed"], *kept["dropped"]}


def test_weights_that_a_file_lacks_are_not_replaced_by_others(tmp_path: Path, state: State) -> None:
    path = saved(tmp_path / "a.pt", {"model": state})
    with pytest.raises(ConversionError, match=r"a\.pt has no weights 'ema'; it has model"):
        convert([path], tmp_path / "out", weights="ema")
    flat = saved(tmp_path / "b.pt", state)
    with pytest.raises(ConversionError, match="it has one set of weights without a name"):
        convert([flat], tmp_path / "out", weights="model")
    with pytest.raises(ConversionError, match="Unknown weights 'best'; allowed: ema, model"):
        convert([flat], tmp_path / "out", weights="best")
    with pytest.raises(ConversionError, match="has no weights; its entries: epoch, lr"):
        convert([saved(tmp_path / "c.pt", {"epoch": 1, "lr": 0.1})], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flat_safetensors_and_lightning_files_are_read_too(tmp_path: Path, state: State) -> None:
    save_file(state, tmp_path / "a.safetensors")
    convert([tmp_path / "a.safetensors"], tmp_path / "out")
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    source, notes = read_weights(saved(tmp_path / "b.ckpt", {"state_dict": {**state, "step": 3}, "epoch": 1}))
    assert source.tensors.keys() == state.keys()
    assert source.dropped == {"epoch": "state of a training", "step": "not a tensor"}
    assert notes == ()


def test_settings_of_the_training_open_no_door(tmp_path: Path, state: State) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'mark'}",)

    path = saved(tmp_path / "a.pt", {"ema": state, "args": Namespace(hook=Evil())})
    with pytest.raises(ConversionError, match=r"would run posix\.system"):
        convert([path], tmp_path / "out")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"qk_norm": True}, "on in the model and off in the weights"),
        ({"num_attention_heads": 8}, "num_attention_heads 4, expected 8"),
        ({"scaling_factor": 0.5}, "'lightningdit' weights take no scaling_factor; .* num_attention_heads, qk_norm"),
        ({"kind": "dit"}, "is not of the kind 'dit'"),
    ],
)
def test_options_are_held_against_the_weights(
    tmp_path: Path, state: State, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConversionError, match=expected):
        convert([saved(tmp_path / "a.pt", state)], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_pair_is_what_a_recipe_takes(
    tmp_path: Path, golden: Callable[[str], State], state: State, vae: AutoencoderKL
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    messages: list[str] = []
    statistics = statistics_file(tmp_path / "latents_stats.pt")
    checkpoint = saved(tmp_path / "xl.pt", {"ema": state})
    convert_checkpoint([checkpoint], tmp_path / "pair", messages.append, vae=tmp_path / "vae", statistics=statistics)
    note = (
        "pair with AutoencoderKL of vae; latent scaling: latents_mean and latents_std of 8 channels; time shift 0.3"
    )
    assert note in messages[0]
    assert "davae.LightningDiTPipeline.from_pretrained" in messages[1]
    pair = Pair(tmp_path / "pair").load()
    assert pair.vae.config.latents_mean == [0.5] * 8
    assert scaling_of(pair.vae).scale == (0.5,) * 8
    assert pair.scheduler.config.shift == sigma_shift(0.3)
    assert pair.image_size == 16
    assert str(tmp_path) not in (tmp_path / "pair" / "vae" / "config.json").read_text()
    tensors = golden("lightningdit_a_base")
    got = pair.transformer(tensors["in.x"], tensors["in.t"], tensors["in.y"]).sample
    assert_close(got, tensors["out.forward"])
    pair.set_progress_bar_config(disable=True)
    assert pair([3], num_inference_steps=1, output_type="pt").images.shape == (1, 3, 16, 16)
    kept = json.loads((tmp_path / "pair" / "conversion.json").read_text())
    assert kept["model"] == "LightningDiT"
    assert note in kept["notes"]
    upgraded = davae.AutoencoderDA.from_base(pair.vae, scale=2)
    assert upgraded.config.latents_mean[:8] == [0.5] * 8  # the pretrained statistics stay


def test_statistics_that_an_autoencoder_declares_are_never_replaced(
    tmp_path: Path, state: State, vae: AutoencoderKL
) -> None:
    vae.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    vae.save_pretrained(tmp_path / "vae")
    checkpoint = saved(tmp_path / "xl.pt", state)
    same, other = statistics_file(tmp_path / "a.pt"), statistics_file(tmp_path / "b.pt", mean=0.6)

    def pair(name: str, statistics: Path | None, **options: Any) -> davae.LightningDiTPipeline:
        folder = tmp_path / name
        convert_checkpoint(
            [checkpoint], folder, lambda _: None, vae=tmp_path / "vae", statistics=statistics, **options
        )
        return Pair(folder).load()

    assert pair("same", same).vae.config.latents_mean == [0.5] * 8
    assert pair("none", None, time_shift=0.5).scheduler.config.shift == 2
    with pytest.raises(ConversionError, match="declares other latent statistics"):
        pair("other", other)
    with pytest.raises(ConversionError, match="statistics are of 4 channels, the latent has 8"):
        pair("few", statistics_file(tmp_path / "c.pt", channels=4))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"vae", "same", "none"}


def test_halves_that_make_no_pair_are_explained(tmp_path: Path, state: State, vae: AutoencoderKL) -> None:
    checkpoint, statistics = saved(tmp_path / "xl.pt", state), statistics_file(tmp_path / "stats.pt")
    vae.save_pretrained(tmp_path / "vae")
    narrow = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
    narrow.save_pretrained(tmp_path / "narrow")
    davae.AutoencoderDA.from_base(narrow, scale=2).save_pretrained(tmp_path / "structured")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vae": tmp_path / "vae"}, "does not say how its latents are normalised"),
        ({"vae": tmp_path / "narrow"}, "4 latent channels, the transformer takes 8"),
        ({"vae": tmp_path / "structured", "statistics": statistics}, "An AutoencoderDA takes no statistics here"),
        ({"vae": tmp_path / "nowhere"}, "no autoencoder in .*nowhere"),
        ({"time_shift": 0.5}, "A time shift is of a pair's scheduler"),
        ({"vae": tmp_path / "narrow", "time_shift": 0.0}, "Timestep shift must be positive"),
        ({"statistics": statistics}, "'lightningdit' weights take no statistics"),
    ]
    for options, expected in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            convert_checkpoint([checkpoint], tmp_path / "pair", lambda _: None, **options)
        assert not (tmp_path / "pair").exists()


def test_the_autoencoder_of_a_pair_may_be_a_checkpoint(tmp_path: Path, vavae: State) -> None:
    model = davae.LightningDiT(sample_size=4, in_channels=4, hidden_size=16, num_layers=1, num_attention_heads=2)
    transformer = saved(tmp_path / "xl.pt", {"ema": model.state_dict()})
    statistics = statistics_file(tmp_path / "stats.pt", channels=4)
    autoencoder = saved(tmp_path / "vavae.pt", {"state_dict": vavae})
    convert_checkpoint([transformer], tmp_path / "pair", lambda _: None, vae=autoencoder, statistics=statistics)
    pair = Pair(tmp_path / "pair").load()
    assert pair.image_size == 8
    assert torch.equal(pair.vae.quant_conv.weight, vavae["quant_conv.weight"])
