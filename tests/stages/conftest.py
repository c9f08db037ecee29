"""One finished run for all tests of stages."""

import shutil
from pathlib import Path

import pytest

from tiny_pair import build_tiny_pair
from tiny_run import RECIPE, run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(pair=build_tiny_pair(folder / "pair")))
    return path


@pytest.fixture(scope="session")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run. Tests that change it work on a copy."""
    runs = tmp_path_factory.mktemp("runs")
    status, said = run(recipe, runs)
    assert status == 0, said
    return runs / "tiny"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny"))
