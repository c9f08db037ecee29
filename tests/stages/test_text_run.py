"""A text-to-image run, from a stock pipeline to images, on SD3's own classes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

import davae
from davae.cli import main
from davae.data.prompts import PromptCache
from davae.recipe import parse_recipe
from davae.stages.pairs import load_upgraded
from davae.stages.run import Run
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


def test_a_run_leaves_all_its_parts(finished: Path) -> None:
    folder = finished / "text"
    state = json.loads((folder / "run.json").read_text())
    assert list(state["stages"]) == STAGES
    assert {path.name for path in (folder / "transformer").iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "widened_heads.safetensors",
        "scheduler",
    }
    for grid in ("previews/finetune-00000002.png", "samples/grid.png"):
        with Image.open(folder / grid) as image:
            assert image.width >= 64
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["stage"] == "finetune"]
    assert [row["step"] for row in trained] == [1, 2, 3]
    assert all({"loss_base", "loss_detail", "detail_weight"} <= row.keys() for row in trained)
    assert "report.html" in {path.name for path in folder.iterdir()}


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
    pipe = load_upgraded(opened(recipe, finished))
    assert type(pipe) is StableDiffusion3Pipeline
    assert pipe.scheduler.config.shift == 4.0
    assert pipe.transformer.config.sample_size == 4
    pipe.set_progress_bar_config(disable=True)
    images = pipe("a red box", num_inference_steps=2, max_sequence_length=MAX_LENGTH, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_only_adapters_and_heads_moved(recipe: Path, finished: Path, pair: Path) -> None:
    one = opened(recipe, finished)
    trained = load_upgraded(one).transformer.state_dict()
    start = davae.widen(one.pair.load_transformer(), detail_channels=4).state_dict()
    moved = {name.rsplit(".", 1)[0] for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    heads = {"pos_embed.proj", "proj_out"}
    assert heads <= moved
    assert all(name in heads or name.endswith(one.pair.backbone.lora_targets) for name in moved)


def test_latents_and_prompts_are_of_the_same_samples(finished: Path) -> None:
    manifest = json.loads((finished / "text" / "latents" / "manifest.json").read_text())
    prompts = PromptCache(finished / "text" / "prompts")
    embedded = prompts.embeddings(manifest["ids"])
    assert embedded["prompt_embeds"].shape == (24, 2 * MAX_LENGTH, 24)
    again = [manifest["captions"].index(caption) for caption in manifest["captions"]]
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
    drawn = load_upgraded(opened(tmp_path / "both.yaml", finished)).transformer
    heads = load_file(finished / "text" / "realism" / "transformer" / "widened_heads.safetensors")
    torch.testing.assert_close(drawn.proj_out.weight, heads["proj_out.weight"])


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
    pipe, run_pipe = StableDiffusion3Pipeline.from_pretrained(target), load_upgraded(opened(recipe, finished))
    drawn = []
    for one in (pipe, run_pipe):
        one.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": 2, "max_sequence_length": MAX_LENGTH, "output_type": "pt"}
        drawn.append(one("a red box", generator=torch.Generator().manual_seed(0), **arguments).images)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=0)
