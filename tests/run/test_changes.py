"""A run that stands: what a changed setting or a lost file does again, and what is refused for safety."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from davae.data.latent_cache import LatentCache
from tiny_run import STAGES, run, skipped, weights


def stage_inputs(run_folder: Path) -> dict[str, object]:
    stages = json.loads((run_folder / "run.json").read_text())["stages"]
    return {name: stage["inputs"] for name, stage in stages.items()}


@pytest.mark.parametrize(
    ("change", "first"),
    [("sample.steps=2", "sample"), ("sample.count=7", "sample"), ("evaluate.reconstructions=5", "evaluate")],
)
def test_a_changed_setting_runs_its_stage_and_those_after_it(
    recipe: Path, copied: Path, change: str, first: str
) -> None:
    before = weights(copied)
    status, said = run(recipe, copied.parent, "--set", change)
    assert status == 0, said
    assert skipped(said) == STAGES[: STAGES.index(first)]
    assert weights(copied) == before
    again, said = run(recipe, copied.parent, "--set", change)
    assert (again, skipped(said)) == (0, STAGES)


def test_a_dry_run_tells_what_would_run_and_touches_nothing(
    recipe: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    for settings, first in ([], 6), (["--set=sample.steps=2"], 3), (["--set=tokenizer.steps=4"], 0):
        status, said = run(recipe, copied.parent, "--dry-run", *settings)
        assert status == 0
        words = ["done"] * first + ["would run"] * (6 - first)
        assert re.findall(r"^ *(done|would run)  (\S+)", said, re.MULTILINE) == list(zip(words, STAGES, strict=True))
        assert "image_size: 32" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_what_changes_no_weight_trains_nothing_again(recipe: Path, copied: Path) -> None:
    changes = [f"--set=tokenizer.{key}=7" for key in ("log_every", "checkpoint_every", "keep_checkpoints")]
    status, said = run(recipe, copied.parent, *changes)
    assert (status, skipped(said)) == (0, STAGES)


def test_fewer_samples_leave_no_old_ones(recipe: Path, copied: Path) -> None:
    assert run(recipe, copied.parent, "--set", "sample.count=7")[0] == 0
    assert len(list((copied / "samples").glob("0*.png"))) == 7
    results = json.loads((copied / "results.json").read_text())
    assert {m["protocol"]["generated"] for m in results["measurements"] if "generated" in m["protocol"]} == {7}


@pytest.mark.parametrize("change", ["tokenizer.steps=4", "finetune.steps=4", "finetune.optim.lr=3e-4", "seed=2"])
def test_a_finished_training_is_not_thrown_away_unasked(recipe: Path, copied: Path, change: str) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    status, said = run(recipe, copied.parent, "--set", change)
    assert status == 1
    key, value = change.split("=")
    assert key.split(".")[-1] in said
    assert "--overwrite" in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in before} == before
    assert run(recipe, copied.parent)[0] == 0


@pytest.mark.parametrize(("change", "first"), [("tokenizer.steps=4", 0), ("finetune.optim.lr=3e-4", 2)])
def test_overwriting_trains_anew_as_if_nothing_had_been_there(
    recipe: Path, copied: Path, tmp_path: Path, change: str, first: int
) -> None:
    before = weights(copied)
    status, said = run(recipe, copied.parent, "--set", change, "--overwrite")
    assert status == 0, said
    assert skipped(said) == STAGES[:first]
    fresh = tmp_path / "fresh" / "tiny"
    assert run(recipe, fresh.parent, "--set", change, "--set=sample=null", "--set=evaluate=null")[0] == 0
    assert weights(copied) == weights(fresh) != before
    assert {name: stage_inputs(copied)[name] for name in STAGES[:3]} == stage_inputs(fresh)
    rows = [json.loads(line) for line in (copied / "stats.jsonl").read_text().splitlines()]
    assert len({(row["stage"], row["step"]) for row in rows}) == len(rows)


def test_another_cache_is_not_trained_on_unasked(recipe: Path, copied: Path) -> None:
    before = (copied / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    status, said = run(recipe, copied.parent, "--set", "cache.dtype=float32")
    assert (status, "--overwrite" in said) == (1, True)
    assert (copied / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    status, said = run(recipe, copied.parent, "--set", "cache.dtype=float32", "--overwrite")
    assert status == 0, said
    assert LatentCache(copied / "latents").manifest.dtype == "float32"


@pytest.mark.parametrize(
    ("lost", "stage"),
    [
        ("tokenizer", "tokenizer"),
        ("latents", "cache"),
        ("latents/manifest.json", "cache"),
        ("latents/latents-00000016.safetensors", "cache"),
        ("pipeline", "finetune"),
        ("samples", "sample"),
        ("results.json", "evaluate"),
        ("report.html", "report"),
    ],
)
def test_a_lost_output_is_made_again(recipe: Path, copied: Path, lost: str, stage: str) -> None:
    before = weights(copied)
    path = copied / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    status, said = run(recipe, copied.parent)
    assert status == 0, said
    rebuilt = [name for name in STAGES if name not in skipped(said)]
    assert rebuilt == (["evaluate", "report"] if stage == "evaluate" else [stage])  # timings differ, so the page does
    assert path.exists()
    assert weights(copied) == before


def test_a_shard_that_was_cut_off_is_made_again_by_the_command_that_is_named(recipe: Path, copied: Path) -> None:
    before = weights(copied)
    shard = copied / "latents" / "latents-00000016.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    others = {path: path.stat().st_mtime_ns for path in copied.glob("latents/*.safetensors") if path != shard}
    status, said = run(recipe, copied.parent, verb="finetune")
    assert (status, shard.name in said, "'davae cache RECIPE'" in said) == (1, True, True), said
    assert run(recipe, copied.parent, verb="cache")[0] == 0
    assert weights(copied) == before
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_lost_samples_are_not_passed_over_when_drawing_was_interrupted(recipe: Path, copied: Path) -> None:
    grid = (copied / "samples" / "grid.png").read_bytes()
    for name in ("grid.png", "latents-000008.safetensors"):
        (copied / "samples" / name).unlink()
    status, said = run(recipe, copied.parent)
    assert status == 0, said
    assert "sample" not in skipped(said)
    assert (copied / "samples" / "grid.png").read_bytes() == grid


def test_a_run_takes_over_what_another_run_made(recipe: Path, finished: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text()) | {"name": "second"}
    values |= {"tokenizer": {"from": str(finished)}, "cache": {"from": str(finished)}}
    values["finetune"]["init"] = "random"
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump(values))
    before = weights(finished)
    status, said = run(second, tmp_path)
    assert status == 0, said
    assert list(stage_inputs(tmp_path / "second")) == STAGES[2:]
    assert not (tmp_path / "second" / "latents").exists()
    assert (tmp_path / "second" / "report.html").exists()
    assert weights(finished) == before
    status, said = run(second, tmp_path, "--set", f"cache.from={tmp_path / 'nowhere'}")
    assert status == 1
    assert f"{tmp_path / 'nowhere'}, which has no latents/" in said


def test_a_tokenizer_alone_can_be_judged(recipe: Path, finished: Path, tmp_path: Path) -> None:
    status, said = run(recipe, tmp_path, *(f"--set={name}=null" for name in ("cache", "finetune", "sample")))
    assert status == 0, said
    assert list(stage_inputs(tmp_path / "tiny")) == ["tokenizer", "evaluate", "report"]
    groups = [m["group"] for m in json.loads((tmp_path / "tiny" / "results.json").read_text())["measurements"]]
    assert set(groups) == {"Reconstruction"}


def test_fewer_detail_than_base_channels_work_without_alignment(recipe: Path, tmp_path: Path) -> None:
    status, said = run(recipe, tmp_path, "--set=tokenizer.detail_channels=2", "--set=tokenizer.align_weight=0")
    assert status == 0, said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("image_size=64", "got 64, allowed 32"),
        ("tokenizer.scale=4", "got 32, allowed 64"),
        ("tokenizer.detail_channels=0", "detail_channels: must be a whole number, at least 1; got 0"),
        ("sample.guidance_channels=999", "guidance_channels must be at most the latent's"),
        ("tokenizer.perceptual={vgg: no/vgg.pth, linear: no/lpips.pth}", "no file at no/vgg.pth"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    recipe: Path, tmp_path: Path, change: str, expected: str
) -> None:
    status, said = run(recipe, tmp_path, "--set", change)
    assert (status, expected in said) == (1, True), said
    assert not (tmp_path / "tiny" / "stats.jsonl").exists()


def test_a_run_can_make_its_own_pair(recipe: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(recipe.read_text()) | {"name": "whole"}
    pair = Path(values.pop("pair"))
    config = json.loads((pair / "vae" / "config.json").read_text())
    training = {"steps": 2, "batch_size": 4, "log_every": 1, "ema_decay": 0.5}
    values["pretrain"] = {
        "image_size": 16,
        "save_dtype": "float16",
        "autoencoder": training
        | {
            "model": "AutoencoderDC",
            "model_config": {
                key: value for key, value in config.items() if key[0] != "_" and key != "scaling_factor"
            },
        },
        "transformer": training
        | {"model_config": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}, "time_shift": 0.5},
    }
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(values))
    status, said = run(whole, tmp_path)
    assert status == 0, said
    expected = ["pretrain-autoencoder", "pretrain-latents", "pretrain-transformer", *STAGES]
    assert list(stage_inputs(tmp_path / "whole")) == expected
    for path in (tmp_path / "whole" / "pretrain" / "pipeline").rglob("config.json"):
        assert str(tmp_path) not in path.read_text(), path
    saved = load_file(tmp_path / "whole/pretrain/pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert saved["blocks.0.attn.qkv.weight"].dtype == torch.float16
    assert saved["feat_rope.freqs_cos"].dtype == torch.float32  # rounded tables turn by other angles
    scheduler = json.loads((tmp_path / "whole" / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["shift"] == 2.0
    assert skipped(run(whole, tmp_path)[1]) == expected


def test_samples_of_other_settings_are_not_judged(recipe: Path, copied: Path) -> None:
    status, said = run(recipe, copied.parent, "--set=sample.guidance_scale=4", verb="evaluate")
    assert status == 1
    assert "davae sample RECIPE" in said
    (copied / "samples" / "latents-000008.safetensors").unlink()
    status, said = run(recipe, copied.parent, "--set=evaluate.reconstructions=5", verb="evaluate")
    assert status == 1
    assert "12 of 20 samples" in said


def test_guidance_on_the_first_channels_draws_other_images(recipe: Path, copied: Path) -> None:
    before = load_file(copied / "samples" / "latents-000000.safetensors")["latent"]
    assert run(recipe, copied.parent, "--set=sample.guidance_channels=3", verb="sample")[0] == 0
    after = load_file(copied / "samples" / "latents-000000.safetensors")["latent"]
    assert (after - before).abs().max() > 1e-4


def test_a_cache_of_other_images_is_refused(recipe: Path, copied: Path, tmp_path: Path) -> None:
    other = ["--set=name=other", "--set=data.seed=8", f"--set=cache={{from: {copied}}}"]
    other += [f"--set=tokenizer={{from: {copied}}}"]
    status, said = run(recipe, tmp_path / "elsewhere", *other, verb="finetune")
    assert status == 1
    assert "source" in said


def test_a_training_that_diverged_goes_on_as_its_error_says(recipe: Path, tmp_path: Path) -> None:
    settings = ["--set", "finetune.checkpoint_every=1", "--set", "sample=null", "--set", "evaluate=null"]
    status, said = run(recipe, tmp_path, *settings, "--set", "finetune.optim.lr=1e30")
    assert status == 1 and "not finite" in said
    lower = [*settings, "--set", "finetune.optim.lr=1e-4"]
    advice = re.search(r"pass (--\w+) to start this stage anew", said)
    assert advice is not None
    status, said = run(recipe, tmp_path, *lower)
    assert status == 1 and f"pass {advice[1]} to start this stage anew" in said
    status, said = run(recipe, tmp_path, *lower, advice[1])
    assert status == 0, said
    assert skipped(said) == ["tokenizer", "cache"]


def test_a_run_goes_on_by_its_folder_from_another_working_directory(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = yaml.safe_load(recipe.read_text())
    pair = Path(values["pair"])
    (tmp_path / "here" / "elsewhere").mkdir(parents=True)
    (tmp_path / "here" / "pair").symlink_to(pair)
    (tmp_path / "here" / "recipe.yaml").write_text(yaml.safe_dump(values | {"pair": "pair"}))
    monkeypatch.chdir(tmp_path / "here")
    assert run(Path("recipe.yaml"), Path("runs"), verb="train-tokenizer")[0] == 0
    monkeypatch.chdir("elsewhere")
    status, said = run(Path("../runs/tiny"), Path("../runs"), verb="cache")
    assert status == 0, said
    status, said = run(Path("../runs/tiny"), Path("../runs"), verb="train-tokenizer")
    assert (status, skipped(said)) == (0, ["tokenizer"]), said
