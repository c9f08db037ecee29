"""A text-to-image run, from a stock pipeline to images, on SD3's own classes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

import davae
from davae.cli import main
from davae.data.latent_cache import LatentCache
from davae.data.prompt_cache import PromptCache
from davae.data.solids import SolidsSource
from davae.recipe import SampleConfig, dump_recipe, parse_recipe
from davae.run import pipelines
from davae.run.run import Run
from davae.sampling.sampler import DECODED_AT_ONCE, decoder_parts
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from davae.train.conditions import Labels
from davae.train.latent_set import LatentSet
from tiny_pair import build_tiny_pair
from tiny_run import RECIPE as CLASS_RECIPE
from tiny_run import run, skipped
from tiny_text import MAX_LENGTH, build_tiny_text_pair

RECIPE = """
name: text
seed: 1
data: {{kind: solids, count: 24, test_count: 12, seed: 7, workers: 0}}
pair: {pair}
image_size: 32
tokenizer: {{steps: 2, batch_size: 4, calibration_images: 8, log_every: 1, checkpoint_every: 2}}
cache: {{batch_size: 8, shard_size: 16}}
prompts: {{max_length: {length}, batch_size: 8, shard_size: 16, dtype: float32}}
finetune:
  steps: 3
  batch_size: 8
  detail_warmup_steps: 2
  log_every: 1
  checkpoint_every: 2
  ema_decay: 0.5
  objective: data
  min_snr_gamma: 5.0
  cosine_weight: 0.0
  sigma_shift: 4.0
  scheduler_shift: 4.0
  detail_lag: 0.25
  gradient_checkpointing: true
  lora: {{rank: 2}}
  preview: {{every: 2, prompts: [a red box, a blue sphere], steps: 2}}
sample: {{count: 5, steps: 2, batch_size: 3, guidance_scale: 2.5}}
evaluate: {{reconstructions: 8, speed_batch: 0, batch_size: 4}}
"""
STAGES = ["tokenizer", "cache", "prompts", "finetune", "sample", "evaluate", "report"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_text_pair(tmp_path_factory.mktemp("pair") / "sd3")


@pytest.fixture(scope="module")
def recipe(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "text.yaml"
    path.write_text(RECIPE.format(pair=pair, length=MAX_LENGTH))
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs, with the recipe's in it."""
    runs = tmp_path_factory.mktemp("runs")
    status, said = run(recipe, runs)
    assert status == 0, said
    return runs


def opened(recipe: Path, runs: Path) -> Run:
    return Run(parse_recipe(yaml.safe_load(recipe.read_text())), runs)


def borrowing(recipe: Path, finished: Path, name: str, *sections: str, **finetune: Any) -> dict[str, Any]:
    """The recipe of another run with sections of the finished one, and other settings of `finetune` (None: unset)."""
    values = yaml.safe_load(recipe.read_text()) | {"name": name}
    values |= {section: {"from": str(finished / "text")} for section in sections}
    values["finetune"] = {key: value for key, value in (values["finetune"] | finetune).items() if value is not None}
    return values


def finetune(values: dict[str, Any], runs: Path) -> tuple[int, str]:
    """Exit status and what was said."""
    runs.mkdir(exist_ok=True)
    path = runs / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    return run(path, runs, verb="finetune")


def test_a_run_leaves_all_its_parts(finished: Path) -> None:
    folder = finished / "text"
    state = json.loads((folder / "run.json").read_text())
    assert list(state["stages"]) == STAGES
    assert {path.name for path in (folder / "transformer").iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "widened_heads.safetensors",
        "scheduler",
        "checksums.json",
    }
    for grid in ("previews/finetune-00000002.png", "samples/grid.png"):
        with Image.open(folder / grid) as image:
            assert image.width >= 64
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["stage"] == "finetune"]
    assert [row["step"] for row in trained] == [1, 2, 3]
    assert all({"loss_base", "loss_detail", "detail_weight"} <= row.keys() for row in trained)
    assert "On the way: finetune" in (folder / "report.html").read_text()


def test_samples_carry_their_captions(finished: Path) -> None:
    folder = finished / "text" / "samples"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [f"{index:06d}.png" for index in range(5)]
    assert all(row["text"].startswith("a ") for row in rows)


def test_a_second_run_does_nothing(recipe: Path, finished: Path) -> None:
    status, said = run(recipe, finished)
    assert status == 0
    assert skipped(said) == STAGES


def test_the_upgraded_pair_is_a_stock_pipeline(recipe: Path, finished: Path) -> None:
    pipe = pipelines.upgraded(opened(recipe, finished))
    assert type(pipe) is StableDiffusion3Pipeline
    assert type(pipe.scheduler) is davae.DetailLagScheduler  # it draws as it was trained
    settings = pipe.scheduler.config
    assert [settings[name] for name in ("shift", "detail_lag", "base_channels", "detail_channels")] == [
        4.0,
        0.25,
        4,
        4,
    ]
    assert pipe.transformer.config.sample_size == 4
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a red box", num_inference_steps=2, max_sequence_length=MAX_LENGTH, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_only_adapters_and_heads_moved(recipe: Path, finished: Path, pair: Path) -> None:
    current = opened(recipe, finished)
    trained = pipelines.upgraded(current).transformer.state_dict()
    start = davae.widen(current.pair.load_transformer(), detail_channels=4).state_dict()
    moved = {name.rsplit(".", 1)[0] for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    heads = {"pos_embed.proj", "proj_out"}
    assert heads <= moved
    assert all(name in heads or name.endswith(current.pair.backbone.lora_targets) for name in moved)


def test_latents_and_prompts_are_of_the_same_samples(finished: Path) -> None:
    manifest = json.loads((finished / "text" / "latents" / "manifest.json").read_text())
    prompts = PromptCache(finished / "text" / "prompts")
    embedded = prompts.embeddings(manifest["ids"])
    assert embedded["prompt_embeds"].shape == (24, 2 * MAX_LENGTH, 24)
    captions = [SolidsSource(24, 7).captions[int(name.rpartition("-")[2])] for name in manifest["ids"]]
    again = [captions.index(caption) for caption in captions]
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(embedded[name], embedded[name][again])  # one caption, one embedding


def test_realism_goes_on_from_the_first_stage(recipe: Path, finished: Path, tmp_path: Path) -> None:
    second = yaml.safe_load(recipe.read_text())
    second["realism"] = {
        "data": {"kind": "solids", "count": 16, "test_count": 4, "seed": 99, "workers": 0},
        **{"steps": 2, "batch_size": 4, "log_every": 1, "ema_decay": 0.5, "cosine_weight": 0.0},
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(second))
    status, said = run(tmp_path / "both.yaml", finished, "--set", "name=text")
    assert status == 0, said
    assert skipped(said)[:4] == STAGES[:4]
    first, then = (
        load_file(finished / "text" / folder / "pytorch_lora_weights.safetensors")
        for folder in ("transformer", "realism/transformer")
    )
    assert first.keys() == then.keys()
    assert any(not torch.equal(first[name], then[name]) for name in first)
    fresh = max((first[name] - then[name]).abs().max() for name in first if "lora_A" in name)
    assert fresh < 0.01  # it goes on: newly drawn adapters would be elsewhere
    drawn = pipelines.upgraded(opened(tmp_path / "both.yaml", finished)).transformer
    heads = load_file(finished / "text" / "realism" / "transformer" / "widened_heads.safetensors")
    torch.testing.assert_close(drawn.proj_out.weight, heads["proj_out.weight"])
    scheduler = json.loads((finished / "text" / "realism/transformer/scheduler/scheduler_config.json").read_text())
    assert scheduler["shift"] == 4.0  # as the first stage has it


def test_another_pair_of_text_encoders_is_refused(recipe: Path, finished: Path, tmp_path: Path) -> None:
    other = yaml.safe_load(recipe.read_text()) | {"name": "other"}
    other["tokenizer"] = {"from": str(finished / "text")}
    other["cache"] = {"from": str(finished / "text")}
    other["prompts"] = {"from": str(finished / "text")}
    changed = tmp_path / "changed"
    pipe = StableDiffusion3Pipeline.from_pretrained(other["pair"])
    with torch.no_grad():
        pipe.text_encoder.text_model.embeddings.token_embedding.weight.add_(1)
    pipe.save_pretrained(changed)
    other["pair"] = str(changed)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    status, said = run(tmp_path / "other.yaml", tmp_path / "runs", verb="finetune")
    assert status == 1
    assert "encoders" in said
    assert "davae prompts" in said


def test_a_text_pair_needs_the_section_prompts(recipe: Path, tmp_path: Path) -> None:
    without = yaml.safe_load(recipe.read_text())
    del without["prompts"]
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(without))
    status, said = run(tmp_path / "without.yaml", tmp_path / "runs", verb="train-tokenizer")
    assert status == 1
    assert "draws from prompts, and the recipe has no section prompts" in said


def test_a_finished_run_generates(recipe: Path, finished: Path, tmp_path: Path) -> None:
    arguments = ["--from", recipe, "--out", tmp_path / "out", "--steps", 2, "--preview", "--baseline"]
    status = main([str(part) for part in ["generate", "a red box", *arguments, "--runs-dir", finished]])
    assert status == 0
    for name in ("000000.png", "000000-preview.png", "000000-baseline.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.size == (32, 32)
    said = (tmp_path / "out" / "000000.json").read_text()
    assert f'"max_length": {MAX_LENGTH}' in said  # as in training


def test_a_finished_run_is_exported_whole(recipe: Path, finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    status = main(["export", str(recipe), str(target), "--dtype", "float32", "--runs-dir", str(finished)])
    assert status == 0
    assert {"README.md", "NOTICE", "model_index.json"} <= {path.name for path in target.iterdir()}
    pipe, run_pipe = StableDiffusion3Pipeline.from_pretrained(target), pipelines.upgraded(opened(recipe, finished))
    drawn = []
    for one in (pipe, run_pipe):
        one.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": 2, "max_sequence_length": MAX_LENGTH, "output_type": "pt"}
        drawn.append(one("a red box", generator=torch.Generator().manual_seed(0), **arguments).images)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=0)


def test_other_prompts_of_the_preview_are_no_other_training(recipe: Path, finished: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(finished, tmp_path / "runs")
    preview = "finetune.preview={every: 2, prompts: [a green pyramid], steps: 2}"
    for verb, passed_over in (("prompts", []), ("finetune", ["finetune"])):
        status, said = run(recipe, runs, "--set", preview, verb=verb)
        assert status == 0, said
        assert skipped(said) == passed_over


def test_a_borrowed_prompt_cache_without_the_preview_is_refused_at_once(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    preview = {"every": 3, "prompts": ["a green pyramid"]}
    values = borrowing(recipe, finished, "other", "tokenizer", "cache", "prompts", preview=preview)
    status, said = finetune(values, tmp_path / "runs")
    assert status == 1
    assert "not 'preview: a green pyramid'" in said
    assert not (tmp_path / "runs" / "other" / "stats.jsonl").exists()


def test_a_training_of_every_weight_is_a_start(recipe: Path, finished: Path, tmp_path: Path) -> None:
    runs, parts = tmp_path / "runs", ("tokenizer", "cache", "prompts")
    whole = borrowing(recipe, finished, "whole", *parts, lora=None, preview=None)
    status, said = finetune(whole, runs)
    assert status == 0, said
    trained = load_file(runs / "whole" / "transformer" / "diffusion_pytorch_model.safetensors")
    still = {"optim": {"lr": 0.0}, "steps": 1, "preview": None, "start": str(runs / "whole")}
    for name, lora in (("again", None), ("adapted", {"rank": 2})):
        values = borrowing(recipe, finished, name, *parts, lora=lora, **still)
        status, said = finetune(values, runs)
        assert status == 0, said
        drawn = pipelines.upgraded(Run(parse_recipe(values), runs)).transformer.state_dict()
        heads = ["pos_embed.proj.weight", "proj_out.weight"]
        assert all(torch.equal(drawn[key], trained[key]) for key in (heads if lora else trained))
    values = borrowing(recipe, finished, "back", *parts, **still | {"start": str(finished / "text"), "lora": None})
    status, said = finetune(values, runs)
    assert status == 1
    assert "cannot go on from a LoRA" in said
    assert "finetune.lora is null" in said


def test_a_class_conditional_run_is_a_start(tmp_path: Path) -> None:
    values = yaml.safe_load(CLASS_RECIPE.format(pair=build_tiny_pair(tmp_path / "pair")))
    del values["evaluate"], values["sample"]
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(values))
    status, said = run(tmp_path / "first.yaml", tmp_path)
    assert status == 0, said
    first = tmp_path / "tiny"
    then = values | {"name": "then"} | {section: {"from": str(first)} for section in ("tokenizer", "cache")}
    then["finetune"] |= {"start": str(first), "optim": {"lr": 0.0}}
    status, said = finetune(then, tmp_path)
    assert status == 0, said
    weights = [
        load_file(folder / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (first, tmp_path / "then")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_pair_draws_as_it_is(pair: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red box\na blue sphere\n")
    sample = {"count": 3, "steps": 2, "batch_size": 2, "prompts": str(tmp_path / "prompts.txt")}
    values = {"name": "plain", "pair": str(pair), "image_size": 16, "sample": sample}
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(yaml.safe_dump(values))
    status, said = run(recipe, tmp_path)
    assert status == 0, said
    assert len(list((tmp_path / "plain" / "samples").glob("[0-9]*.png"))) == 3
    (tmp_path / "prompts.txt").write_text("a green box\n")  # another content under the same name
    assert skipped(run(recipe, tmp_path)[1]) == []
    recipe.write_text(yaml.safe_dump(values | {"sample": {"count": 3}}))
    status, said = run(recipe, tmp_path)
    assert status == 1
    assert "Set sample.prompts to a file of prompts" in said


def test_text_is_encoded_for_drawing_as_it_was_for_training(recipe: Path, finished: Path) -> None:
    current = opened(recipe, finished)
    assert current.recipe.prompts is not None
    current.recipe = replace(current.recipe, prompts=replace(current.recipe.prompts, dtype="bfloat16"))
    drawn = pipelines.drawing(current)
    assert drawn.text_encoder.dtype == drawn.text_encoder_3.dtype == torch.bfloat16
    assert drawn.transformer.dtype == drawn.vae.dtype == torch.float32


def test_the_state_between_steps_is_not_rounded(recipe: Path, finished: Path) -> None:
    pipe = pipelines.drawing(opened(recipe, finished))
    settings = SampleConfig(steps=3, guidance_scale=2.0, precision="bf16")
    prompts = TypedPrompts(pipe, ["a red box"], MAX_LENGTH)
    drawn = TextSampler(pipe, settings, prompts, (32, 32)).latents([0])
    assert not torch.equal(drawn, drawn.bfloat16().float())
    exact = TextSampler(pipe, replace(settings, precision="fp32"), prompts, (32, 32)).latents([0])
    assert 0 < (drawn - exact).abs().max() < 0.05 * exact.abs().max()
    assert not pipe.transformer._forward_hooks


def test_large_images_are_decoded_in_smaller_parts(recipe: Path, finished: Path) -> None:
    pipe = pipelines.upgraded(opened(recipe, finished))
    positions = 1024 // pipe.vae.compression
    for side, parts in ((positions // 8, [DECODED_AT_ONCE, 4]), (positions, [4] * 9), (4 * positions, [1] * 36)):
        latents = torch.empty(36, 1, side, side)
        assert [len(part) for part in decoder_parts(pipe, latents)] == parts


def test_mirrored_latents_must_be_in_the_cache(finished: Path) -> None:
    cache = LatentCache(finished / "text" / "latents")
    cache.manifest = replace(cache.manifest, flips=False)
    labels = Labels([0] * 24, 0, 0.0, 0)
    assert len(LatentSet(cache, labels, 0, False, 4)) == 24
    with pytest.raises(ValueError, match="Set flips to false"):
        LatentSet(cache, labels, 0, True, 4)


def test_what_a_later_stage_would_stop_at_is_refused_at_once(recipe: Path, tmp_path: Path) -> None:
    for setting, message in (
        ("finetune.accumulation=3", "batch_size must be a multiple of accumulation 3"),
        ("sample.prompts=nowhere.txt", "There is no file nowhere.txt"),
        ("realism={data: {kind: solids}, steps: 2, lora: {rank: 3}}", "realism.lora is finetune's"),
        ("realism={data: {kind: solids}, steps: 2, start: elsewhere}", "realism.start is nothing to set"),
    ):
        status, said = run(recipe, tmp_path, "--set", setting)
        assert status == 1
        assert message in said
        assert not (tmp_path / "text").exists()


def test_realism_has_the_settings_of_finetune(recipe: Path) -> None:
    given = yaml.safe_load(recipe.read_text())
    given["realism"] = {"data": {"kind": "solids"}, "steps": 7}
    parsed = parse_recipe(given)
    assert parsed.finetune is not None
    assert parsed.realism is not None
    assert (parsed.realism.steps, parsed.realism.detail_warmup_steps, parsed.realism.start) == (7, 0, None)
    for name in ("objective", "min_snr_gamma", "sigma_shift", "scheduler_shift", "detail_lag", "lora", "batch_size"):
        assert getattr(parsed.realism, name) == getattr(parsed.finetune, name)
    assert parse_recipe(yaml.safe_load(dump_recipe(parsed))) == parsed
