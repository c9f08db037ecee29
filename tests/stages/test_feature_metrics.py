"""`evaluate.metrics` and rFID in a run: numbers in its results, beside those that were there."""

from pathlib import Path

import pytest

from davae.evaluate.generation import FEATURES_GROUP, REAL, SETS
from davae.evaluate.reconstruction import VARIANTS
from davae.evaluate.results import Results
from davae.evaluate.spaces import inception, solids
from davae.run import checks
from davae.stages import evaluate
from tiny_run import run
from tiny_space import tiny_space


def test_a_run_is_judged_by_the_metrics_of_its_recipe(
    recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find", lambda file: Path(file.name))
    monkeypatch.setattr(evaluate, "SPACES", {"inception": lambda loading: tiny_space(), "solids": solids.load})
    monkeypatch.setattr(inception, "at_hand", lambda loading: tiny_space())
    before = Results.load(copied / "results.json").measurements
    status, said = run(recipe, copied.parent, "--set", "evaluate.metrics=[fid,kid,solids-accuracy]", verb="evaluate")
    assert status == 0, said
    after = Results.load(copied / "results.json").measurements
    scores = {(item.row, item.column) for item in after if item.group == FEATURES_GROUP}
    columns = ("FID-20", "KID", "Shape accuracy", "Material accuracy")  # classes name no colour
    assert scores == {(row, column) for row in (*SETS, REAL) for column in columns}
    assert {item.row for item in after if item.column == "rFID-12"} == VARIANTS.keys()
    assert {(i.group, i.row, i.column) for i in before} <= {(i.group, i.row, i.column) for i in after}
