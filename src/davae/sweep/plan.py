"""What a sweep will do: its cells, each a whole recipe, and its seeds; kept in the sweep's folder as sweep.json."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from davae.core.state import read_json, write_json
from davae.recipe import Recipe, parse_recipe
from davae.sweep.find import PLAN

METRICS = (
    "Reconstruction / full / *",
    "Reconstruction / zero detail / PSNR",
    "Reconstruction / random detail / PSNR",
    "Alignment / * / mean r",
    "Power spectrum / detail / energy above half of Nyquist",
    "Generation: * / upgraded / *",
    "Base pair: * / * / *",
)
"""What the table shows unless a sweep says otherwise."""
CURVES = ("* / loss_base", "* / loss_detail", "* / psnr", "pretrain-transformer / loss")
"""What is drawn over steps, likewise."""


def setting(value: Any) -> str:
    """A value as `--set` takes it, and as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Cell:
    """One setting, over all seeds.

    Args:
        name: for people.
        changes: keys of the recipe that it sets, with their values.
        recipe: with them; name and seed are those of its runs.
    """

    name: str
    changes: Mapping[str, Any]
    recipe: Recipe

    @property
    def slug(self) -> str:
        """Its name as a part of a folder's."""
        return re.sub(r"[^\w.-]+", "-", self.name).strip("-.") or "cell"

    def of_seed(self, seed: int) -> "PlannedRun":
        """Its run with a seed."""
        return PlannedRun(self, seed, replace(self.recipe, name=f"{self.slug}-seed{seed}", seed=seed))


@dataclass(frozen=True)
class PlannedRun:
    """A cell with one seed: an ordinary run, in the folder of the sweep."""

    cell: Cell
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.recipe.name


@dataclass(frozen=True)
class Sweep:
    """Cells and seeds, validated.

    Args:
        name: of its folder.
        cells: in the order of the table.
        seeds: of every cell.
        title: of its page.
        about: a sentence or two below it.
        metrics: "group / row / column" of what the table shows; `*` stands for any text.
        curves: "stage / value" of what is drawn over steps.
    """

    name: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    title: str = ""
    about: str = ""
    metrics: tuple[str, ...] = METRICS
    curves: tuple[str, ...] = CURVES

    @property
    def runs(self) -> list[PlannedRun]:
        """All of them, seed by seed: the table is whole early, with few seeds."""
        return [cell.of_seed(seed) for seed in self.seeds for cell in self.cells]


@dataclass
class _CellState:
    changes: dict[str, Any]
    recipe: dict[str, Any]


@dataclass
class _State:
    """What sweep.json holds."""

    seeds: list[int]
    cells: dict[str, _CellState]
    title: str = ""
    about: str = ""
    metrics: list[str] = field(default_factory=list)
    curves: list[str] = field(default_factory=list)


def save_plan(sweep: Sweep, folder: Path) -> None:
    """Write sweep.json: who goes on from the folder needs neither the sweep's file nor its working directory."""
    content = {
        "title": sweep.title,
        "about": sweep.about,
        "seeds": sweep.seeds,
        "metrics": sweep.metrics,
        "curves": sweep.curves,
        "cells": {
            cell.name: {"changes": dict(cell.changes), "recipe": cell.recipe.anchored().as_dict()}
            for cell in sweep.cells
        },
    }
    write_json(folder / PLAN, content, indent=1)


def load_plan(folder: Path) -> Sweep:
    """What `save_plan` wrote.

    Raises:
        StateError: the file is damaged.
        RecipeError: a recipe in it is none of this version.
    """
    path = folder / PLAN
    state = read_json(path, _State, "Start the sweep again by its file; finished runs are kept.")
    cells = [
        Cell(name, cell.changes, parse_recipe(cell.recipe, f"{path}, cell {name},"))
        for name, cell in state.cells.items()
    ]
    return Sweep(
        folder.resolve().name,
        tuple(cells),
        tuple(state.seeds),
        state.title,
        state.about,
        tuple(state.metrics),
        tuple(state.curves),
    )
