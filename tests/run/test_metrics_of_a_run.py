"""`evaluate.metrics` of a recipe: known names, and weights that are there before hours of training."""

from pathlib import Path

import pytest

from davae.evaluate.metrics import FEATURES
from davae.recipe import load_recipe
from davae.recipe.sections import FEATURE_METRICS
from davae.run.checks import check
from davae.run.run import Run


def test_an_unknown_metric_is_refused_when_the_recipe_is_read(recipe: Path) -> None:
    with pytest.raises(ValueError, match="Unknown metric 'fdi'. Did you mean 'fid'"):
        load_recipe(recipe, ["evaluate.metrics=[fdi]"])


def test_weights_that_are_not_here_are_missed_before_the_first_stage(recipe: Path, tmp_path: Path) -> None:
    run = Run(load_recipe(recipe, ["evaluate.metrics=[fid]"]), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"evaluate\.metrics needs the FID Inception .* --download"):
        check(run)


def test_a_recipe_knows_the_metrics_that_there_are() -> None:
    assert set(FEATURE_METRICS) == set(FEATURES)
