"""A sweep as YAML: found, read, expanded into cells, and every cell's recipe validated before anything runs.

recipe: demo                              # a file, the folder of a run, a recipe that comes with the package
overlay: {finetune: {steps: 300}}         # entries laid over it
cells:                                    # settings with a name, each with the keys that it sets
  zero: {}
  random: {finetune.init: random}
vary: {finetune.cosine_weight: [0, 1]}    # axes: every value of each, with every cell
seeds: [0, 1, 2]
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from davae.core.config import Config, Seed
from davae.recipe import Recipe, RecipeError, merge_overrides, parse_recipe, read_recipe, validated
from davae.recipe.quick import SUFFIX
from davae.recipe.reader import read_file, read_yaml
from davae.sweep.find import find_sweep, sweep_folder
from davae.sweep.plan import CURVES, METRICS, Cell, Sweep, load_plan, setting

_OWN = {"seed": "List them under seeds", "name": "Each run has one of its own"}
"""Keys of a recipe that a sweep sets itself -> what to do about them."""


@dataclass(frozen=True, kw_only=True)
class SweepFile(Config):
    """A sweep as people write it."""

    recipe: str
    """A recipe that comes with the package, the folder of a run, or a file, beside this one or from the working
    directory."""
    title: str = ""
    """Of the page."""
    about: str = ""
    """A sentence or two on the page: what is asked."""
    overlay: dict[str, Any] = field(default_factory=dict)
    """Entries laid over the recipe, as in a file of `--overlay`."""
    cells: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    """Name of a setting -> the keys that it sets, as `--set` names them."""
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Key, as `--set` names it -> its values. Every combination is run, with every one of `cells`."""
    seeds: tuple[Seed, ...] = (0,)
    """Every cell is run with each of them as the recipe's seed."""
    metrics: tuple[str, ...] = METRICS
    """What the table shows, as "group / row / column" of results.json; `*` stands for any text."""
    curves: tuple[str, ...] = CURVES
    """What is drawn over steps, as "stage / value" of stats.jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.cells and not self.vary:
            raise ValueError("nothing varies; name settings under cells, or values of keys under vary")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be one or more, each once; got {list(self.seeds)}")
        for key, values in self.vary.items():
            if not values:
                raise ValueError(f"vary: {key} has no values")
        for key in [*self.vary, *(key for changes in self.cells.values() for key in changes or ())]:
            if key in _OWN:
                raise ValueError(f"{key} is nothing to vary. {_OWN[key]}")
        for name, parts, patterns in (("metrics", 3, self.metrics), ("curves", 2, self.curves)):
            for pattern in patterns:
                if len(pattern.split(" / ")) != parts:
                    shape = "group / row / column" if parts == 3 else "stage / value"
                    raise ValueError(f"{name} are of the form {shape!r}; got {pattern!r}")


def load_sweep(
    named: str | Path,
    overrides: Sequence[str] = (),
    *,
    overlays: Sequence[str | Path] = (),
    quick: bool = False,
) -> Sweep:
    """Find, read, expand and validate a sweep.

    Args:
        named: a file, the folder of a sweep, or the name of a sweep that comes with the package.
        overrides: `a.b=c` strings for the recipe of every cell, before the cell's own; `name=x` names the sweep.
        overlays: files of entries that are laid over the recipe, after the sweep's own.
        quick: scale the recipe down to a trial. What cells set stays as they set it.

    Raises:
        RecipeError: it cannot be found or read, a recipe is wrong, or two cells are the same.
    """
    begun = sweep_folder(named)
    if begun is not None:
        if overrides or overlays or quick:
            raise RecipeError(f"{named} is a sweep that was begun, and its recipes are made. Change its file.")
        return load_plan(begun)
    path = find_sweep(named)
    asked = _read(path)
    base = [*(text for text in overrides if not text.startswith("name=")), f"name={path.stem}"]
    for text in overrides:
        _refuse_varied(text.partition("=")[0], asked, path)
    values = read_recipe(_recipe(asked.recipe, path), base, overlays=[asked.overlay, *overlays], quick=quick)
    cells = [_cell(name, changes, values, path) for name, changes in _expanded(asked)]
    _refuse_twins(cells, path)
    [name] = [text.partition("=")[2] for text in overrides if text.startswith("name=")][-1:] or [path.stem]
    name = f"{name}{SUFFIX}" if quick and not name.endswith(SUFFIX) else name
    parse_recipe(values | {"name": name}, str(path))  # as a run's, it is the name of a folder
    return Sweep(name, tuple(cells), asked.seeds, asked.title, asked.about, asked.metrics, asked.curves)


def _read(path: Path) -> SweepFile:
    values = read_yaml(read_file(path), SweepFile, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping with recipe, cells or vary, and seeds; got {values!r}.")
    return validated(SweepFile, values, f"{path} is not a valid sweep")


def _recipe(named: str, path: Path) -> str | Path:
    beside = path.parent / named
    return beside if beside.is_file() else named


def _expanded(asked: SweepFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changes of every cell: named settings times the grid of the axes."""
    short = {key: key.rpartition(".")[2] for key in asked.vary}
    if len(set(short.values())) < len(short):
        short = {key: key for key in short}
    for name, changes in (asked.cells or {"": {}}).items():
        for values in itertools.product(*asked.vary.values()):
            axes = dict(zip(asked.vary, values, strict=True))
            parts = [name, *(f"{short[key]} {setting(value)}" for key, value in axes.items())]
            yield ", ".join(part for part in parts if part), {**(changes or {}), **axes}


def _cell(name: str, changes: Mapping[str, Any], values: Mapping[str, Any], path: Path) -> Cell:
    where = f"{path}, cell {name!r},"
    try:
        changed = merge_overrides(values, [f"{key}={setting(value)}" for key, value in changes.items()])
    except RecipeError as error:
        raise RecipeError(f"{where} cannot be made: {error}") from error
    return Cell(name, changes, parse_recipe(changed, where))


def _refuse_varied(key: str, asked: SweepFile, path: Path) -> None:
    varied = {*asked.vary, *(key for changes in asked.cells.values() for key in changes or ())}
    if key == "seed" or key in varied:
        raise RecipeError(f"--set {key}: it is what {path} varies. Change it there, in a copy of the file.")


def _refuse_twins(cells: Sequence[Cell], path: Path) -> None:
    for one, other in itertools.combinations(cells, 2):
        if _identity(one.recipe) == _identity(other.recipe):
            raise RecipeError(
                f"{path}: the cells {one.name!r} and {other.name!r} have the same recipe; leave one of them out."
            )
        if one.slug.lower() == other.slug.lower():
            raise RecipeError(
                f"{path}: the cells {one.name!r} and {other.name!r} would have the same folder, {one.slug}-seed0; "
                f"rename one."
            )


def _identity(recipe: Recipe) -> str:
    return json.dumps(recipe.as_dict(), sort_keys=True)
