"""Which recipe a word names: a file, the folder of a run, or a recipe that comes with the package, in this order."""

import difflib
from importlib.resources import files
from pathlib import Path

from davae.recipe.errors import RecipeError

_RECIPE, _RECORD = "recipe.yaml", "run.json"


def find_recipe(named: str | Path) -> Path:
    """The file of a recipe.

    Raises:
        RecipeError: there is none of this name; the text has the nearest.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return path
    run = run_folder(named)
    if run is not None:
        return run / _RECIPE
    shipped = shipped_recipes()
    if str(named) in shipped:
        return shipped[str(named)]
    if path.is_dir():
        raise RecipeError(
            f"{path} is no folder of a run: it lacks {_RECIPE} and {_RECORD}. Give the file of a recipe."
        )
    raise RecipeError(f"There is no recipe {named}. {hint(path, list(shipped), 'run')}")


def run_folder(named: str | Path) -> Path | None:
    """The folder of a run, where a word names one: the run is then that folder, whatever its recipe is called."""
    path = Path(named).expanduser()
    return path.resolve() if (path / _RECIPE).is_file() and (path / _RECORD).is_file() else None


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    folder = Path(str(files("davae") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def hint(path: Path, shipped: list[str], whose: str) -> str:
    """What may have been meant by a word that names nothing.

    Args:
        path: the word.
        shipped: names that come with the package.
        whose: "run": whose folder would have done too.
    """
    beside = [file.name for file in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
    near = [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, beside, n=2)]
    near += difflib.get_close_matches(path.stem, shipped, n=2)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return (
        f"Give a YAML file, the folder of a {whose}, or the name of one that comes with davae: {', '.join(shipped)}."
    )
