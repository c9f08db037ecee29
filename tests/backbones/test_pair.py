"""A saved pair, opened part by part, and pairs that are no pairs or bring code along."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

import davae
from backbones.families import PIPELINES
from davae.backbones.lightningdit import LIGHTNINGDIT
from davae.backbones.pair import INDEX, Pair
from davae.backbones.sd3 import SD3
from tiny_pair import build_tiny_pair
from tiny_text import build_tiny_text_pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_pair(tmp_path / "pair")


def change_index(folder: Path, **entries: Any) -> None:
    path = folder / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_pair_of_labels(folder: Path) -> None:
    pair = Pair(folder)
    assert (pair.backbone, pair.is_text, pair.text_parts) == (LIGHTNINGDIT, False, [])
    assert pair.parts == ["scheduler", "transformer", "vae"]
    assert pair.pipeline_class is davae.LightningDiTPipeline
    assert pair.pipeline_name == "LightningDiTPipeline"
    assert pair.model_class("transformer") is davae.LightningDiT
    assert pair.transformer_config.num_classes == 18
    assert pair.load_scheduler().config.shift == 1 / 0.3
    weights = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    transformer = pair.load_transformer(torch.bfloat16)
    assert not transformer.training
    assert torch.equal(transformer.x_embedder.proj.weight, weights["x_embedder.proj.weight"].bfloat16())
    replaced = FlowMatchEulerDiscreteScheduler(shift=9.0)
    assert pair.load(scheduler=replaced).scheduler is replaced


def test_a_pair_of_text_may_lack_an_encoder(tmp_path: Path) -> None:
    pair = Pair(build_tiny_text_pair(tmp_path))
    assert (pair.backbone, pair.is_text) == (SD3, True)
    assert pair.pipeline_class is StableDiffusion3Pipeline
    assert pair.model_class("transformer") is SD3Transformer2DModel
    assert pair.text_parts == list(SD3.text_parts)
    assert "image_encoder" not in pair.parts
    change_index(tmp_path, text_encoder_3=[None, None], tokenizer_3=[None, None])
    assert Pair(tmp_path).text_parts == ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]


@pytest.mark.parametrize("name", PIPELINES)
def test_stock_pipelines_of_every_family_are_allowed(name: str, tmp_path: Path) -> None:
    pipe = PIPELINES[name].make()
    (tmp_path / "model").mkdir()
    pipe.save_config(tmp_path / "model")
    # As the published Hunyuan-DiT has it: a class that is defined among diffusers' pipelines.
    change_index(tmp_path / "model", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    pair = Pair(tmp_path / "model")
    assert pair.pipeline_class is type(pipe)
    assert pair.model_class("transformer") is type(pipe.transformer)


@pytest.mark.parametrize("library", ["evil", "pair.evil", "os", "diffusers.utils", "davae.cli", "utils", 7, None])
@pytest.mark.parametrize("part", ["transformer", "scheduler", "vae", "addition"])
def test_no_code_comes_with_a_pair(
    part: str, library: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m davae` has the working directory first on its path, and a pair may lie there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in (tmp_path / "evil.py", folder / "evil.py", folder / "transformer" / "evil.py"):
        path.write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\nclass LightningDiT: pass\n")
    change_index(folder, **{part: [library, "LightningDiT"]})
    with pytest.raises(ValueError, match="allowed libraries are diffusers, transformers, davae") as refused:
        Pair("pair")
    assert f"pair/{INDEX} describes: it names the class 'LightningDiT' of {library!r}" in str(refused.value)
    assert not (tmp_path / "RAN").exists()
    assert not {"evil", "pair", "pair.evil"} & sys.modules.keys()


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("diffusers", "LightningDiT"),
        ("davae", "load_finetuned"),
        ("davae", "models"),
        ("transformers", "LightningDiT"),
    ],
)
def test_what_a_library_does_not_have_is_refused(library: str, name: str, folder: Path) -> None:
    change_index(folder, vae=[library, name])
    with pytest.raises(ValueError, match=f"names '{name}' of {library}, which has no ModelMixin of this name"):
        Pair(folder).model_class("vae")


def test_classes_of_another_kind_are_refused(folder: Path) -> None:
    change_index(folder, scheduler=["diffusers", "AutoencoderKL"])
    with pytest.raises(ValueError, match="names 'AutoencoderKL' of diffusers, which has no SchedulerMixin"):
        Pair(folder).load_scheduler()
    change_index(folder, scheduler=[None, None])
    with pytest.raises(ValueError, match="has no scheduler; got transformer, vae"):
        Pair(folder).load_scheduler()
    for name in ("AutoencoderKL", "AutoencoderDA", "os", "FuturePipeline"):
        change_index(folder, _class_name=name)
        with pytest.raises(ValueError, match=f"names '{name}' of .*which has no DiffusionPipeline"):
            _ = Pair(folder).pipeline_class


def test_what_is_no_pair_is_explained(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no pretrained pair in .*nowhere: model_index.json is missing. Give"):
        Pair(tmp_path / "nowhere")
    for content, message in (
        ("", "Cannot read .*model_index.json: it is empty"),
        ("<!DOCTYPE html>", "Cannot read .*model_index.json: it is a web page, not the file"),
        ('{"a', "Cannot read .*model_index.json: Unterminated"),
        ("[]", "Cannot read .*model_index.json: got a list, allowed is a JSON object"),
        ("{}", "not the index of a pipeline"),
        ('{"_class_name": ["pipeline", "Evil"]}', "not the index of a pipeline"),
        (
            '{"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}',
            "its StableDiffusionPipeline has no transformer; got vae. Take",
        ),
        (
            '{"_class_name": "X", "transformer": ["diffusers", "StableAudioDiTModel"]}',
            "its transformer is a StableAudioDiTModel; known are DiTTransformer2DModel, Flux2",
        ),
    ):
        (folder / INDEX).write_text(content)
        with pytest.raises(ValueError, match=message):
            Pair(folder)


def test_weights_of_another_model_and_pickles_are_refused(tmp_path: Path) -> None:
    pair = Pair(build_tiny_text_pair(tmp_path))
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    others = {f"other.{name}": weights[name] for name in ("proj_out.weight", "proj_out.bias")}
    save_file({name: weights[name] for name in weights if f"other.{name}" not in others} | others, path)
    with pytest.raises(ValueError, match="transformer do not fit their config: 2 missing, 2 unexpected, for example"):
        pair.load_transformer()
    path.unlink()
    torch.save(weights, path.with_suffix(".bin"))
    with pytest.raises(OSError, match="safetensors"):
        pair.load_transformer()
    with pytest.raises(OSError, match="safetensors"):
        pair.load()


def rename_weights(folder: Path, part: str, name: str) -> None:
    [weights] = (folder / part).glob("*.safetensors")
    weights.rename(folder / part / f"{weights.name.removesuffix('.safetensors')}.{name}")


def test_parts_that_have_a_variant_alone_are_opened(tmp_path: Path) -> None:
    pair = Pair(build_tiny_text_pair(tmp_path / "pair"))
    want = pair.load()
    rename_weights(tmp_path / "pair", "transformer", "fp16.safetensors")
    rename_weights(tmp_path / "pair", "text_encoder", "bf16.safetensors")
    got = pair.load()
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        state = getattr(got, part).state_dict()
        assert all(torch.equal(state[name], value) for name, value in getattr(want, part).state_dict().items()), part
    assert torch.equal(pair.load_transformer().proj_out.weight, want.transformer.proj_out.weight)


def test_damage_in_a_part_is_named(tmp_path: Path) -> None:
    folder = build_tiny_text_pair(tmp_path / "pair")
    rename_weights(folder, "text_encoder_2", "bin")
    with pytest.raises(FileNotFoundError, match="no weights in safetensors in .*text_encoder_2: got model.bin"):
        Pair(folder).load()
    for file in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"):
        before = (folder / file).read_text()
        (folder / file).write_text("{")
        with pytest.raises(ValueError, match=f"Cannot read .*{file}: Expecting property name"):
            Pair(folder).load(text_encoder_2=None)
        (folder / file).write_text(before)


@pytest.mark.parametrize("name", ["AutoTokenizer", "AutoModel", "AutoProcessor", "AutoPipelineForText2Image"])
def test_a_class_that_picks_another_is_refused(name: str, folder: Path) -> None:
    change_index(folder, tokenizer=["transformers", name])
    with pytest.raises(ValueError, match=f"it names '{name}' of 'transformers', which picks a class by what other"):
        Pair(folder)


def test_code_beside_weights_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libraries look for it: by their own names, by auto_map, by a tokenizer's class, in the current folder."""
    folder = build_tiny_text_pair(tmp_path / "pair")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = f"open({str(tmp_path / 'RAN')!r}, 'w').close()\nclass Evil: pass\nclass SD3Transformer2DModel: pass\n"
    for place in (tmp_path, folder, *(folder / part for part in ("transformer", "vae", "text_encoder", "tokenizer"))):
        for name in ("evil", "pipeline", "modeling"):
            (place / f"{name}.py").write_text(code)
    maps = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    for file in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "transformer/config.json"):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": maps}))
    tokenizer = folder / "tokenizer_3" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"tokenizer_class": "evil.Evil"}))
    change_index(folder, custom_pipeline="evil")
    assert type(Pair(folder).load()) is StableDiffusion3Pipeline
    for part, library in (("transformer", "diffusers"), ("text_encoder", "transformers")):
        (folder / part / f"{library}.py").write_text(code)
    with pytest.raises(ValueError, match="contains custom code"):
        Pair(folder).load()
    assert type(Pair(folder).load_transformer()) is SD3Transformer2DModel
    assert not (tmp_path / "RAN").exists()
    assert not {"evil", "pair"} & sys.modules.keys()
