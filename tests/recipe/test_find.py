"""Which recipe a word names: a file, the folder of a run, one that comes with the package."""

from pathlib import Path

import pytest

from davae.recipe import RecipeError, load_recipe, run_folder, shipped_recipes
from davae.recipe.find import find_recipe

TEXT = "name: written\ndata: {path: photos}\nimage_size: 32\ntokenizer: {steps: 1, batch_size: 1}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(TEXT)
    (folder / "run.json").write_text("{}")
    return folder


def test_a_file_comes_before_a_name(here: Path) -> None:
    assert find_recipe("demo") == shipped_recipes()["demo"]
    Path("demo").write_text(TEXT)
    assert find_recipe("demo") == Path("demo")
    assert find_recipe("~/demo") == here / "demo"


def test_every_recipe_that_comes_with_the_package_has_its_name() -> None:
    assert {"demo", "sd35m-1k", "solids-pair", "imagenet512-lightningdit-xl"} <= set(shipped_recipes())
    assert all(load_recipe(name).name == name for name in ("demo", "sd35m-1k"))


def test_a_run_is_named_by_its_folder_and_keeps_its_name(here: Path) -> None:
    run = make_run(here / "runs" / "copied")
    assert run_folder("runs/copied") == run_folder("~/runs/copied") == run
    assert find_recipe("runs/copied/") == run / "recipe.yaml"
    assert load_recipe("runs/copied").name == "copied"
    assert load_recipe("runs/copied", ["name=other"]).name == "other"


def test_a_folder_that_is_no_run_does_not_hide_a_name(here: Path) -> None:
    (here / "demo").mkdir()
    assert run_folder("demo") is None
    assert find_recipe("demo") == shipped_recipes()["demo"]
    (here / "photos").mkdir()
    with pytest.raises(RecipeError, match=r"photos is no folder of a run: it lacks recipe\.yaml and run\.json"):
        find_recipe("photos")


@pytest.mark.parametrize(
    ("named", "hint"),
    [
        ("sd35m1k", "Did you mean sd35m-1k or sd35m-2k?"),
        ("recipes/sd35m-1k.yaml", "Did you mean sd35m-1k or sd35m-2k?"),
        ("mine.yml", "Did you mean mine.yaml?"),
        ("zzzzzz", "Give a YAML file, the folder of a run, or the name of one that comes with davae: demo"),
    ],
)
def test_a_missing_recipe_is_answered_with_the_nearest(named: str, hint: str) -> None:
    Path("mine.yaml").write_text(TEXT)
    with pytest.raises(RecipeError) as refused:
        find_recipe(named)
    assert str(refused.value).startswith(f"There is no recipe {named}. {hint}")


def test_paths_hold_from_any_working_directory(here: Path) -> None:
    Path("recipe.yaml").write_text(TEXT + "pair: org/name\n")
    recipe = load_recipe("recipe.yaml", ["tokenizer.perceptual.vgg=weights/vgg.pth"]).anchored()
    assert recipe.data is not None and recipe.tokenizer is not None and recipe.tokenizer.perceptual is not None
    assert recipe.data.path == str(here / "photos")
    assert recipe.tokenizer.perceptual.vgg == str(here / "weights" / "vgg.pth")
    assert recipe.pair == "org/name"
    (here / "org" / "name").mkdir(parents=True)
    assert recipe.anchored().pair == str(here / "org" / "name")
