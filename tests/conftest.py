"""Shared fixtures. torchvision is hidden first: the core must work without it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.modules["torchvision"] = None  # type: ignore[assignment]

import pytest
import torch
from safetensors.torch import load_file

from tiny_pair import build_tiny_pair
from tiny_run import RECIPE, run

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the user's home, by fixtures of any scope nor by processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def golden():
    """Load a golden case: a dict with 'weights.', 'in.' and 'out.' tensors."""
    return lambda case: load_file(GOLDEN / f"{case}.safetensors")


def assert_close(got: torch.Tensor, want: torch.Tensor, relative: float = 1e-4) -> None:
    """max|got - want| <= relative * max|want|, the rule the golden index suggests."""
    assert got.shape == want.shape, (got.shape, want.shape)
    difference = (got - want).abs().max().item()
    scale = want.abs().max().item()
    assert difference <= relative * max(scale, 1e-30), f"max difference {difference:.3e}, scale {scale:.3e}"


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
