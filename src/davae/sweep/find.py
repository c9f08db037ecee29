"""Which sweep a word names: a file, the folder of a sweep, or one that comes with the package, in this order."""

from importlib.resources import files
from pathlib import Path

from davae.recipe import RecipeError
from davae.recipe.find import hint

PLAN = "sweep.json"
"""Name of the file that makes a folder that of a sweep."""


def find_sweep(named: str | Path) -> Path:
    """The file of a sweep that was not begun.

    Raises:
        RecipeError: there is none of this name; the text has the nearest.
    """
    path, shipped = Path(named).expanduser(), shipped_sweeps()
    if path.is_file():
        return path
    if str(named) in shipped:
        return shipped[str(named)]
    if path.is_dir():
        raise RecipeError(f"{path} is no folder of a sweep: it lacks {PLAN}. Give the file of a sweep.")
    raise RecipeError(f"There is no sweep {named}. {hint(path, list(shipped), 'sweep')}")


def sweep_folder(named: str | Path) -> Path | None:
    """The folder of a sweep that was begun, where a word names one."""
    path = Path(named).expanduser()
    return path.resolve() if (path / PLAN).is_file() else None


def shipped_sweeps() -> dict[str, Path]:
    """Name -> file of every sweep that comes with the package."""
    folder = Path(str(files("davae") / "sweeps"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
