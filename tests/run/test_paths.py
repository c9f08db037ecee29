"""Every path of a run has one owner."""

import re
from pathlib import Path

import pytest

from davae.run.paths import RunFolder, distinct_names, recipe_beside, refuse_claimed

SOURCE = Path(__file__).parents[2] / "src" / "davae"
NAMES = ("tokenizer", "latents", "previews", "samples", "checkpoints", "realism", "recipe.yaml", "run.json")


def test_what_fine_tuning_leaves_depends_on_the_pair(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).finetuned() == tmp_path / "pipeline"
    assert RunFolder(tmp_path, is_text=True).finetuned("realism") == tmp_path / "realism" / "transformer"


def test_both_rounds_have_folders_of_their_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.latents() == tmp_path / "latents"
    assert folder.latents("realism") == tmp_path / "realism" / "latents"
    assert folder.prompts("realism") == tmp_path / "realism" / "prompts"


def test_previews_are_found_in_the_order_of_their_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name, step in (("finetune", 1000), ("finetune", 500), ("realism", 20)):
        path = folder.preview(name, step)  # type: ignore[arg-type]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [step for step, _ in folder.previews("finetune")] == [500, 1000]
    assert [step for step, _ in folder.previews("realism")] == [20]


def test_a_report_is_not_written_over_a_run_or_a_model(tmp_path: Path) -> None:
    refuse_claimed(tmp_path, "the table")
    for name in ("recipe.yaml", "run.json", "model_index.json", "config.json"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"Cannot write the table to .*{name} there belongs"):
            refuse_claimed(tmp_path, "the table")
        (tmp_path / name).unlink()


def test_the_recipe_of_a_result_is_found(tmp_path: Path) -> None:
    assert recipe_beside(tmp_path / "tokenizer") is None
    (tmp_path / "recipe.yaml").touch()
    assert recipe_beside(tmp_path / "tokenizer") == (tmp_path / "recipe.yaml").resolve()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a/tokenizer", "runs/b/tokenizer"], ["a", "b"]),
        (["runs/a/tokenizer", "other/a/tokenizer"], ["runs/a/tokenizer", "other/a/tokenizer"]),
    ],
)
def test_models_are_told_apart_by_their_runs(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names
    with pytest.raises(ValueError, match="compared with others than itself"):
        distinct_names([Path(paths[0])] * 2)


def test_nothing_above_spells_a_path_of_a_run() -> None:
    """Rooms that know runs ask `RunFolder`."""
    spelled = re.compile(rf"""/ f?["']({"|".join(map(re.escape, NAMES))})\b""")
    found = {
        f"{path.relative_to(SOURCE)}: {match.group()}"
        for room in ("run", "stages", "tools", "cli")
        for path in (SOURCE / room).rglob("*.py")
        if path != SOURCE / "run" / "paths.py"
        for match in spelled.finditer(path.read_text())
    }
    assert found == set()
