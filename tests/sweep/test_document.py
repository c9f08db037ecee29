"""A sweep file: what it expands to, and what is refused before anything runs."""

from pathlib import Path

import pytest

from davae.cli import main
from davae.recipe import RecipeError
from davae.sweep.document import load_sweep
from davae.sweep.find import shipped_sweeps
from davae.sweep.plan import Sweep, load_plan, save_plan


def sweep(folder: Path, recipe: Path, text: str, name: str = "tried", **options: object) -> Sweep:
    file = folder / f"{name}.yaml"
    file.write_text(f"recipe: {recipe}\n{text}")
    return load_sweep(file, **options)  # type: ignore[arg-type]


def test_named_cells_meet_every_value_of_every_axis(recipe: Path, tmp_path: Path) -> None:
    text = (
        "cells: {zero: {}, random: {finetune.init: random}}\nvary: {tokenizer.align_weight: [0, 0.5]}\nseeds: [3, 1]"
    )
    found = sweep(tmp_path, recipe, text)
    assert [cell.name for cell in found.cells] == [
        f"{init}, align_weight {weight}" for init in ("zero", "random") for weight in (0, 0.5)
    ]
    settings = [(cell.recipe.finetune.init, cell.recipe.tokenizer.align_weight) for cell in found.cells]  # type: ignore[union-attr]
    assert settings == [("zero", 0), ("zero", 0.5), ("random", 0), ("random", 0.5)]
    assert [(run.seed, run.recipe.seed) for run in found.runs] == [(3, 3)] * 4 + [(1, 1)] * 4
    assert found.runs[3].name == "random-align_weight-0.5-seed3"
    assert len({run.name for run in found.runs}) == 8


def test_axes_whose_keys_end_alike_are_named_whole(recipe: Path, tmp_path: Path) -> None:
    found = sweep(tmp_path, recipe, "vary: {tokenizer.steps: [1], finetune.steps: [2]}")
    assert [cell.name for cell in found.cells] == ["tokenizer.steps 1, finetune.steps 2"]


def test_what_a_person_sets_comes_before_what_a_cell_sets(recipe: Path, tmp_path: Path) -> None:
    text = "overlay: {finetune: {steps: 5}, evaluate: null}\nvary: {finetune.init: [zero, random]}"
    plain = sweep(tmp_path, recipe, text)
    asked = sweep(tmp_path, recipe, text, overrides=["**.steps=7", "name=other"])
    assert (plain.name, asked.name) == ("tried", "other")
    assert [cell.recipe.finetune.steps for cell in plain.cells + asked.cells] == [5, 5, 7, 7]  # type: ignore[union-attr]
    assert plain.cells[0].recipe.evaluate is None
    quick = sweep(tmp_path, recipe, "vary: {finetune.steps: [900, 1000]}", quick=True)
    assert quick.name == "tried-quick"
    assert [cell.recipe.finetune.steps for cell in quick.cells] == [900, 1000]  # type: ignore[union-attr]
    assert quick.cells[0].recipe.sample.count == 8  # type: ignore[union-attr]


def test_a_recipe_lies_beside_the_sweep(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(recipe.read_text())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sweep(tmp_path, Path("mine.yaml"), "vary: {finetune.steps: [1]}").cells


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vary: {tokenizer.algn_weight: [0]}", "did you mean 'align_weight'"),
        ("vary: {tokenizer.align_weight: [-1]}", "tokenizer.align_weight"),
        ("vary: {tokenizer.align_weight: []}", "has no values"),
        ("cells: {a: {finetune.init: random}, b: {finetune.init: random}}", "have the same recipe"),
        ("vary: {finetune.steps: [1, 1]}", "have the same recipe"),
        ("cells: {a b: {finetune.steps: 1}, a-b: {finetune.steps: 2}}", "the same folder"),
        ("vary: {seed: [1, 2]}", "List them under seeds"),
        ("vary: {finetune.steps: [1]}\nseeds: [0, 0]", "each once"),
        ("sedes: [1]\nvary: {finetune.steps: [1]}", "did you mean 'seeds'"),
        ("seeds: [1]", "nothing varies"),
        ("vary: {finetune.steps: [1]}\nmetrics: [PSNR]", "group / row / column"),
        ("vary: {'nothing.*': [1]}", "no key of this recipe"),
        ("vary: [1]", "must be a section"),
    ],
)
def test_what_cannot_be_run_is_refused(recipe: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        sweep(tmp_path, recipe, text)


def test_what_varies_is_not_set_beside_it(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it is what .* varies"):
        sweep(tmp_path, recipe, "vary: {finetune.steps: [1, 2]}", overrides=["finetune.steps=3"])


def test_a_name_that_is_nothing_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="Did you mean alignment"):
        load_sweep("alignement")


def test_a_sweep_goes_on_from_its_folder_alone(recipe: Path, tmp_path: Path) -> None:
    planned = sweep(tmp_path, recipe, "vary: {finetune.init: [zero, random]}\ntitle: Start\nseeds: [0, 4]")
    save_plan(planned, tmp_path / "tried")
    found = load_sweep(tmp_path / "tried")
    assert found == load_plan(tmp_path / "tried") == planned
    with pytest.raises(RecipeError, match="was begun"):
        load_sweep(tmp_path / "tried", ["finetune.steps=3"])
    with pytest.raises(RecipeError, match="no folder of a sweep"):
        load_sweep(tmp_path)


@pytest.mark.parametrize("name", shipped_sweeps())
def test_every_sweep_that_comes_with_the_package_is_valid(name: str, tmp_path: Path) -> None:
    found = load_sweep(name)
    assert found.seeds == (0, 1, 2)
    assert found.title and found.about
    folder = load_sweep(name, ["data.kind=folder", f"data.path={tmp_path}"])
    assert {cell.recipe.data.kind for cell in folder.cells if cell.recipe.data} == {"folder"}


def test_a_dry_run_shows_cells_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "components", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "no weight schedule\n    finetune.detail_warmup_steps=0\n    no-weight-schedule-seed0/" in said


def test_the_status_of_what_was_not_begun_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "components", "--status", "--runs-dir", str(tmp_path)]) == 1
    assert "There is no sweep in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
