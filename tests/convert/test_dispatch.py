"""Files in, folder out: the layout is found, the folder is whole or absent, and diffusers loads it."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

import davae
from conftest import assert_close
from davae.convert.dispatch import KINDS, convert, detect
from davae.convert.from_ldm import convert_ldm
from davae.convert.keys import ConversionError
from davae.convert.unpickle import read_source
from davae.tools.convert import convert_checkpoint

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def saved(path: Path, content: Any) -> Path:
    """A file with this content."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        torch.save(content, path)
    return path


@pytest.fixture
def tae(tmp_path: Path) -> list[Path]:
    """The files of a tiny autoencoder, the encoder last."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    encoder = {key.removeprefix("layers."): value for key, value in model.encoder.state_dict().items()}
    decoder = {}
    for key, value in model.decoder.state_dict().items():
        index, _, rest = key.removeprefix("layers.").partition(".")
        decoder[f"{int(index) + 1}.{rest}"] = value
    return [saved(tmp_path / "a.pth", decoder), saved(tmp_path / "b.pth", encoder)]


def test_every_kind_is_found_by_its_keys(
    tmp_path: Path, vavae: State, imagenet: State, sd3: State, tae: list[Path]
) -> None:
    files = {"ldm": vavae, "davae-imagenet": imagenet, "davae-sd3": sd3}
    kinds = {kind: detect(read_source(saved(tmp_path / f"{kind}.pt", state))) for kind, state in files.items()}
    assert kinds == {kind: kind for kind in files}
    assert [detect(read_source(path)) for path in tae] == ["tae", "tae"]
    assert set(kinds) | {"tae", "lightningdit", "dit", "sit", "repa"} == set(KINDS)


def test_an_unknown_layout_is_answered_with_the_known_ones_and_the_keys(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {f"blocks.{i}.weight": torch.zeros(1) for i in range(6)})
    with pytest.raises(ConversionError) as error:
        convert([path], tmp_path / "out")
    text = str(error.value)
    assert all(kind in text for kind in KINDS)
    assert "blocks.0.weight, blocks.1.weight, blocks.2.weight, blocks.3.weight and 2 more" in text
    assert not (tmp_path / "out").exists()


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
def test_a_vavae_becomes_a_diffusers_folder(tmp_path: Path, vavae: State, suffix: str) -> None:
    state = {key: value.bfloat16() for key, value in vavae.items()}
    path = saved(tmp_path / f"vavae{suffix}", {"state_dict": state, "epoch": 1} if suffix == ".ckpt" else state)
    column = {"mean": torch.arange(4.0).view(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1) * 2}
    statistics = saved(tmp_path / "latents_stats.pt", column)
    report = convert([path], tmp_path / "out", statistics=statistics)
    model = AutoencoderKL.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16)
    want = convert_ldm(state)[0].state_dict()
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}
    assert model.config.latents_mean == [0.0, 1.0, 2.0, 3.0]
    kept = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert kept["kind"] == report.kind == "ldm"
    assert kept["model"] == "AutoencoderKL"
    assert kept["davae"] == davae.__version__
    assert kept["sources"] == [{"file": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}]
    assert {*kept["loaded"], *kept["renamed"]} == vavae.keys()
    assert kept["dropped"] == ({"epoch": "state of a training"} if suffix == ".ckpt" else {})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "conversion.json", WEIGHTS]


@pytest.mark.parametrize("form", ["checkpoint", "folder", "pipeline"])
def test_the_imagenet_branch_takes_its_base_in_every_form(
    tmp_path: Path, imagenet: State, base_of: Callable[[State], State], form: str
) -> None:
    path = saved(tmp_path / "davae.pt", imagenet)
    base = saved(tmp_path / "vavae.pt", {key: value.half() for key, value in base_of(imagenet).items()})
    if form != "checkpoint":
        folder = tmp_path / "pair" / "vae" if form == "pipeline" else tmp_path / "pair"
        convert([base], folder, scaling_factor=0.5)
        base = tmp_path / "pair"
    statistics = saved(tmp_path / "stats.json", {"mean": [0.1] * 16, "std": [0.5] * 16})
    convert([path], tmp_path / "out", base=base, statistics=statistics)
    model = davae.AutoencoderDA.from_pretrained(tmp_path / "out")
    assert model.config.detail_std == [0.5] * 12
    assert model.config.latents_std == [0.5] * 4 + [1.0] * 12
    assert (model.config.base_units, model.config.decoder_order) == ("raw", "base_first")
    assert not model.config.clamp_base_image
    assert torch.equal(model.encoder.conv_out.conv.weight, imagenet["da.da_down.conv.weight"])
    assert torch.equal(model.base_vae.encoder.conv_in.weight, imagenet["base_encoder.conv_in.weight"])


@torch.no_grad()
def test_the_text_to_image_branch_becomes_a_folder(
    tmp_path: Path, golden: Callable[[str], State], sd3: State
) -> None:
    path = saved(tmp_path / "pytorch_model.bin", sd3)
    statistics = saved(tmp_path / "latent_norm_stats.json", {"mean": [0.5] * 4, "std": [2.0] * 4})
    convert([path], tmp_path / "out", statistics=statistics, norm_num_groups=4)
    model, tensors = davae.AutoencoderDA.from_pretrained(tmp_path / "out"), golden("sd3_tokenizer")
    assert model.config.detail_std == [2.0] * 4
    assert not model.training
    image = 2 * tensors["in.x"] - 1
    assert_close(model(image).sample, tensors["out.decode_raw"])
    assert_close(model.decode(model.encode(image).latent_dist.mode()).sample, tensors["out.decode_raw"])


WRAPPERS = [
    "module.",
    "_orig_mod.",
    "vae.",
    "first_stage_model.",
    "model.vae.module.",
    "_orig_mod.module.model._orig_mod.",
    "ema.",
]
NESTS: list[Callable[[State], Any]] = [
    lambda state: {"state_dict": state},
    lambda state: {"model": state, "optimizer": {"state": {}}},
    lambda state: {"ema": state, "model": {key: 0 * value for key, value in state.items()}},
    lambda state: {"ema_state_dict": state, "step": 3},
    lambda state: {"state_dict": {"ema": state}},
    lambda state: {"module": {"model": {"state_dict": state}}},
]


def converted(sources: list[Path], folder: Path, **options: Any) -> State:
    convert(sources, folder, **options)
    return load_file(folder / WEIGHTS)


@pytest.mark.parametrize("prefix", WRAPPERS)
@pytest.mark.parametrize("kind", ["ldm", "davae-imagenet", "davae-sd3", "tae"])
def test_autoencoders_convert_whatever_wraps_them(
    kind: str,
    prefix: str,
    tmp_path: Path,
    vavae: State,
    imagenet: State,
    sd3: State,
    tae: list[Path],
    base_of: Callable[[State], State],
) -> None:
    options: dict[str, Any] = {}
    if kind == "davae-imagenet":
        options["base"] = saved(tmp_path / "base.pt", base_of(imagenet))
    if kind == "davae-sd3":
        options["norm_num_groups"] = 4
    plain = {
        "ldm": [vavae],
        "davae-imagenet": [imagenet],
        "davae-sd3": [sd3],
        "tae": [dict(read_source(path).tensors) for path in tae],
    }[kind]
    paths = [saved(tmp_path / f"plain{number}.pt", state) for number, state in enumerate(plain)]
    wrapped = [
        saved(tmp_path / f"wrapped{number}.pt", {f"{prefix}{key}": value for key, value in state.items()})
        for number, state in enumerate(plain)
    ]
    want, got = converted(paths, tmp_path / "a", **options), converted(wrapped, tmp_path / "b", **options)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[key], value) for key, value in want.items())
    report = json.loads((tmp_path / "b" / "conversion.json").read_text())
    assert report["kind"] == kind
    keys = {f"{prefix}{key}" for state in plain for key in state}
    assert keys <= {key.rpartition(":")[2] for key in {*report["loaded"], *report["renamed"], *report["dropped"]}}


@pytest.mark.parametrize("nest", NESTS)
def test_weights_are_found_inside_what_a_training_saved(
    nest: Callable[[State], Any], tmp_path: Path, vavae: State
) -> None:
    path = saved(tmp_path / "a.pt", nest({f"module.vae.{key}": value for key, value in vavae.items()}))
    want, got = converted([saved(tmp_path / "b.pt", vavae)], tmp_path / "x"), converted([path], tmp_path / "y")
    assert all(torch.equal(got[key], value) for key, value in want.items())


def test_an_autoencoder_is_told_from_what_lies_beside_it(tmp_path: Path, vavae: State) -> None:
    state = {f"vae.{key}": value for key, value in vavae.items()} | {"discriminator.weight": torch.zeros(1)}
    report = convert([saved(tmp_path / "a.pt", state)], tmp_path / "out")
    assert report.dropped == {"discriminator.weight": "not of this model"}
    state |= {f"ema.{key}": value for key, value in vavae.items()}
    with pytest.raises(ConversionError, match=r"several models of one layout: under 'ema.', 'vae.'. Save"):
        convert([saved(tmp_path / "b.pt", state)], tmp_path / "other")


def test_a_tiny_autoencoder_is_two_files(tmp_path: Path, tae: list[Path]) -> None:
    convert(tae, tmp_path / "out")
    model = AutoencoderTiny.from_pretrained(tmp_path / "out")
    assert torch.equal(model.encoder.layers[0].weight, read_source(tae[1]).tensors["0.weight"])
    with pytest.raises(ConversionError, match=r"an encoder and a decoder, two files; got a\.pth"):
        convert(tae[:1], tmp_path / "other")


def test_nothing_is_written_unless_everything_fits(tmp_path: Path, vavae: State) -> None:
    del vavae["encoder.norm_out.bias"]
    path = saved(tmp_path / "vae.pt", vavae)
    with pytest.raises(ConversionError, match=r"1 missing \(encoder\.conv_norm_out\.bias\)"):
        convert([path], tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["vae.pt"]


def test_a_failure_while_writing_leaves_nothing(
    tmp_path: Path, vavae: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(self: AutoencoderKL, folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"half")
        raise OSError("No space left on device")

    path = saved(tmp_path / "vae.pt", vavae)
    monkeypatch.setattr(AutoencoderKL, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert([path], tmp_path / "out")
    assert [left.name for left in tmp_path.iterdir()] == ["vae.pt"]


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path: Path, vavae: State) -> None:
    path = saved(tmp_path / "vae.pt", vavae)
    (tmp_path / "out").mkdir()
    convert([path], tmp_path / "out")  # an empty one may be filled
    before = (tmp_path / "out" / WEIGHTS).read_bytes()
    with pytest.raises(ConversionError, match="out exists already. Name a new folder"):
        convert([path], tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == before
    with pytest.raises(ConversionError, match=r"vae\.pt exists already"):
        convert([path], path)


def test_what_shows_up_in_the_folder_meanwhile_stays(
    tmp_path: Path, vavae: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = saved(tmp_path / "vae.pt", vavae), tmp_path / "out"

    def slowly(self: AutoencoderKL, folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"")
        out.mkdir()
        (out / "theirs").write_text("other work")

    monkeypatch.setattr(AutoencoderKL, "save_pretrained", slowly)
    with pytest.raises(ConversionError, match="out exists already"):
        convert([path], out)
    assert [left.name for left in out.iterdir()] == ["theirs"]
    assert {left.name for left in tmp_path.iterdir()} == {"out", "vae.pt"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"kind": "vae"}, "Unknown kind 'vae'; allowed: auto, davae-sd3, davae-imagenet, ldm, tae"),
        ({"kind": "tae"}, r"vae\.pt is not of the kind 'tae'. Keys seen: "),
        ({"base": Path("x")}, "'ldm' weights take no base; their options: statistics, scaling_factor, shift_factor"),
        ({"statistics": Path("nowhere.json")}, r"There is no file nowhere\.json"),
    ],
)
def test_options_that_do_not_fit_are_explained(
    tmp_path: Path, vavae: State, options: dict[str, Any], expected: str
) -> None:
    path = saved(tmp_path / "vae.pt", vavae)
    with pytest.raises(ConversionError, match=expected):
        convert([path], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_options_that_do_not_fit(tmp_path: Path, vavae: State, imagenet: State, tae: list[Path]) -> None:
    vae, checkpoint = saved(tmp_path / "vae.pt", vavae), saved(tmp_path / "davae.pt", imagenet)
    cases: list[tuple[list[Path], dict[str, Any], str]] = [
        ([vae, vae], {}, r"'ldm' weights are one file; got vae\.pt, vae\.pt"),
        ([checkpoint], {}, "lacks the base decoder. Pass the VA-VAE"),
        ([checkpoint], {"base": tmp_path / "nowhere"}, "There is no file .*nowhere"),
        ([checkpoint], {"base": tmp_path}, r"is no diffusers folder: config\.json is missing"),
        (tae, {"statistics": vae}, "'tae' weights take no statistics; their options: none"),
        ([tae[0], vae], {}, r"vae\.pt is not of the kind 'tae'"),
    ]
    for sources, options, expected in cases:
        with pytest.raises(ConversionError, match=expected):
            convert(sources, tmp_path / "out", **options)
    convert(tae, tmp_path / "tiny")
    with pytest.raises(ConversionError, match="is of class AutoencoderTiny"):
        convert([checkpoint], tmp_path / "out", base=tmp_path / "tiny")


def test_the_stage_says_what_happened_and_how_to_load_it(tmp_path: Path, vavae: State, sd3: State) -> None:
    messages: list[str] = []
    folder = tmp_path / "out"
    vavae["loss.logvar"] = torch.zeros(())
    convert_checkpoint([saved(tmp_path / "vae.pt", vavae)], folder, messages.append, scaling_factor=0.5)
    assert messages[0].startswith("ldm -> AutoencoderKL: 151 keys; 12 loaded as they are, 138 renamed, 1 dropped")
    assert "dropped 1: loss of its training" in messages[0]
    assert "latent scaling: factor 0.5, shift 0" in messages[0]
    assert f'diffusers.AutoencoderKL.from_pretrained("{folder}")' in messages[1]
    convert_checkpoint([saved(tmp_path / "da.pt", sd3)], tmp_path / "da", messages.append, norm_num_groups=4)
    assert "davae.AutoencoderDA.from_pretrained" in messages[3]
