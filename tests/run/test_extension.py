"""What a newcomer adds is one file and one line: a text-to-image family with training, and a stage."""

import json
from pathlib import Path
from typing import Any

import pytest

import davae
from backbones.toy_family import register, toy_pipeline
from davae import stages
from davae.core.files import write_text
from davae.recipe import load_recipe, parse_recipe
from davae.run.execute import Stage
from davae.run.run import Run
from tiny_run import STAGES
from tiny_text import MAX_LENGTH


def recipe_of_a_text_run(pair: Path) -> dict[str, Any]:
    training = {"steps": 2, "batch_size": 4, "log_every": 1}
    return {
        "name": "toy",
        "data": {"kind": "solids", "count": 12, "test_count": 4, "workers": 0},
        "pair": str(pair),
        "image_size": 32,
        "tokenizer": {**training, "calibration_images": 4},
        "cache": {"batch_size": 4},
        "prompts": {"max_length": MAX_LENGTH, "dtype": "float32"},
        "finetune": {**training, "lora": {"rank": 2}, "preview": {"every": 2, "prompts": ["a red box"], "steps": 2}},
        "sample": {"count": 2, "steps": 2, "guidance_scale": 2.0},
        "evaluate": {"reconstructions": 4, "speed_batch": 1},
    }


def test_a_family_that_is_one_backbone_trains_and_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch)  # one file in backbones/, one line in its registry
    toy_pipeline().save_pretrained(tmp_path / "pair")
    run = davae.run_recipe(parse_recipe(recipe_of_a_text_run(tmp_path / "pair")), tmp_path / "runs")
    assert run.folder.preview("finetune", 2).is_file()
    assert run.folder.report.is_file()
    assert len(list(run.folder.samples.glob("[0-9]*.png"))) == 2
    rows = [json.loads(line) for line in run.folder.stats.read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"tokenizer", "finetune"}


def count_test_images(run: Run) -> None:
    """A stage of a newcomer."""
    write_text(run.folder.root / "count.txt", str(len(run.data.test)))


STAGE = Stage(
    name="count",
    verb="evaluate",
    section="evaluate",
    inputs=lambda run: {"data": run.data.test.fingerprint},
    run=count_test_images,
    output=lambda run: run.folder.root / "count.txt",
)


def test_a_stage_that_is_one_object_runs_and_is_skipped(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, copied: Path
) -> None:
    monkeypatch.setattr(stages, "STAGES", (*stages.STAGES, STAGE))  # one file in stages/, one line in its list
    run = davae.run_recipe(load_recipe(recipe), copied.parent)
    assert (copied / "count.txt").read_text() == "20"
    assert list(json.loads(run.folder.record.read_text())["stages"]) == [*STAGES, "count"]
    stamp = (copied / "count.txt").stat().st_mtime_ns
    davae.run_recipe(load_recipe(recipe), copied.parent)
    assert (copied / "count.txt").stat().st_mtime_ns == stamp
