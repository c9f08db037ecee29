"""`davae train-judge`: a judge alone is a whole run, stopped and resumed like the others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from davae.evaluate.spaces import solids
from davae.evaluate.spaces.space import Loading
from davae.models.solids_judge import SolidsJudge
from davae.recipe import RecipeError, parse_recipe
from davae.train.batch import Batch
from davae.train.judge import JudgeTask
from davae.train.task import Loss
from tiny_run import run, skipped

RECIPE: dict[str, Any] = {
    "name": "judge",
    "data": {"kind": "solids", "count": 24, "test_count": 4, "workers": 0},
    "judge": {"image_size": 32, "steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2},
}


def test_a_judge_is_a_whole_run_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "judge.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    whole, parts = tmp_path / "whole" / "judge", tmp_path / "parts" / "judge"
    assert run(recipe, whole.parent, verb="train-judge")[0] == 0
    assert skipped(run(recipe, whole.parent)[1]) == ["judge"]
    learned = JudgeTask.loss

    def stop(task: JudgeTask, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        if step == 3:
            raise FloatingPointError("stopped at step 3")
        return learned(task, learner, network, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(JudgeTask, "loss", stop)
        assert run(recipe, parts.parent)[0] == 1
    assert not (parts / "judge").exists()
    assert run(recipe, parts.parent)[0] == 0
    assert [row["step"] for row in rows(parts)] == [1, 2, 3, 4] and all(row["fineness"] > 0 for row in rows(parts))
    judges = [SolidsJudge.from_pretrained(folder / "judge").state_dict() for folder in (whole, parts)]
    assert all(torch.equal(judges[1][name], weight) for name, weight in judges[0].items())
    assert json.loads((parts / "judge" / "provenance.json").read_text())["recipe"]["judge"]["steps"] == 4
    space = solids.load(Loading(str(parts / "judge")))
    with torch.no_grad():
        assert space.compute(torch.zeros(1, 3, 32, 32))["pool"].shape == (1, space.lengths["pool"])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_a_judge_learns_from_rendered_scenes_alone() -> None:
    with pytest.raises(RecipeError, match=r"learns from rendered scenes, data\.kind solids; got folder"):
        parse_recipe(RECIPE | {"data": {"kind": "folder", "path": "photographs"}})
    with pytest.raises(RecipeError, match="section judge needs section data"):
        parse_recipe({"name": "judge", "judge": RECIPE["judge"]})
