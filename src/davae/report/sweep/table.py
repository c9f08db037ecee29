"""The table of a sweep: mean and spread over seeds of what was measured, and which cell is best beyond the spread."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from davae.evaluate.results import Measurement
from davae.report.markup import duration, number

State = Literal["done", "failed", "at work", "waits"]
SPREAD = "standard deviation over seeds (n - 1)"
BEST = "best by more than its deviation and that of each other cell together"
_CONTROLS = ("zero detail", "random detail")
"""Rows that show what the decoder makes of the detail: no cell is better for what it draws without."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep: a cell with one seed.

    Args:
        cell: its name.
        seed: of the run.
        folder: of the run; need not exist.
        state: how far it is.
        sentence: why it failed.
        measurements: of a run that is done.
        seconds: stage -> time that it takes, in this run or in the one that it was shared with.
    """

    cell: str
    seed: int
    folder: Path
    state: State
    sentence: str = ""
    measurements: Sequence[Measurement] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """What is measured, one number a run."""

    group: str
    row: str
    name: str
    unit: str
    better: Literal["higher", "lower", ""]

    @classmethod
    def of(cls, item: Measurement) -> "Column":
        """Of a measurement."""
        better = "" if item.row in _CONTROLS else item.better
        return cls(item.group, item.row, item.column, item.unit, better)

    @property
    def title(self) -> str:
        """Within its group."""
        return f"{self.row}, {self.name}"


@dataclass(frozen=True)
class Score:
    """The numbers of a cell in a column.

    Args:
        values: seed -> number, of the runs that are done.
        is_best: whether it is better than every other cell's, beyond the spread.
    """

    values: Mapping[int, float]
    is_best: bool = False

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.values.values())

    @property
    def spread(self) -> float | None:
        """See `SPREAD`; None with one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Table:
    """Cells x columns.

    Args:
        cells: in their order.
        columns: in their order.
        scores: of the cells and columns for which there is a number.
        runs: that it is made of.
    """

    cells: Sequence[str]
    columns: Sequence[Column]
    scores: Mapping[tuple[str, Column], Score]
    runs: Sequence[SweptRun]

    @property
    def groups(self) -> dict[str, list[Column]]:
        """Columns by their group."""
        found: dict[str, list[Column]] = {}
        for column in self.columns:
            found.setdefault(column.group, []).append(column)
        return found

    def runs_of(self, cell: str) -> list[SweptRun]:
        """The runs of a cell."""
        return [run for run in self.runs if run.cell == cell]

    def counted(self, cell: str) -> str:
        """How many runs of a cell the numbers are of, for example "3" or "2 of 3, 1 failed"."""
        runs = self.runs_of(cell)
        states = {state: sum(run.state == state for run in runs) for state in ("done", "failed", "at work", "waits")}
        if states["done"] == len(runs):
            return f"{len(runs)}"
        others = [f"{count} {state}" for state, count in states.items() if count and state != "done"]
        return ", ".join([f"{states['done']} of {len(runs)}", *others])

    def time(self, cell: str) -> str:
        """What a run of a cell takes, alone: mean over its runs that are done."""
        spent = [sum(run.seconds.values()) for run in self.runs_of(cell) if run.state == "done"]
        return duration(fmean(spent)) if spent else "\u2013"

    def is_best(self, cell: str, column: Column) -> bool:
        """See `Score`."""
        return (cell, column) in self.scores and self.scores[cell, column].is_best

    def shown(self, cell: str, column: Column) -> str:
        """A score for people, "28.12 ± 0.31"; a dash where there is none."""
        score = self.scores.get((cell, column))
        if score is None:
            return "\u2013"
        scores = [other for (_, place), other in self.scores.items() if place == column]
        peers = [other.mean for other in scores]
        if any(other.spread is not None for other in scores):
            peers.append(0.5)  # the mean of whole numbers is none
        text = number(score.mean, peers)
        return text if score.spread is None else f"{text} ± {number(score.spread, peers)}"


def tabulate(runs: Sequence[SweptRun], patterns: Sequence[str]) -> Table:
    """The table of what was measured of runs.

    Args:
        runs: of a sweep, in order.
        patterns: "group / row / column", in the order of the columns; `*` stands for any text.
    """
    measured = [item for run in runs for item in run.measurements]
    known = {(column.group, column.row, column.name): column for column in map(Column.of, measured)}
    columns = [
        column
        for pattern in patterns
        for key, column in known.items()
        if all(map(fnmatchcase, key, pattern.split(" / ")))
    ]
    columns = sorted(dict.fromkeys(columns), key=lambda column: [c.group for c in columns].index(column.group))
    cells = list(dict.fromkeys(run.cell for run in runs))
    scores: dict[tuple[str, Column], Score] = {}
    for column in columns:
        found = {cell: _values(runs, cell, column) for cell in cells}
        scored = {cell: Score(values) for cell, values in found.items() if values}
        scores |= {(cell, column): replace(s, is_best=_is_best(cell, scored, column)) for cell, s in scored.items()}
    return Table(cells, columns, scores, runs)


def as_json(table: Table) -> dict[str, Any]:
    """The table for machines, every number with the seeds that it is of."""
    return {
        "spread": SPREAD,
        "best": BEST,
        "columns": [
            {"group": c.group, "row": c.row, "column": c.name, "unit": c.unit, "better": c.better}
            for c in table.columns
        ],
        "cells": {
            cell: {
                "scores": [_score_as_json(table.scores.get((cell, column))) for column in table.columns],
                "runs": {
                    str(run.seed): {
                        "folder": run.folder.name,
                        "state": run.state,
                        **({"failed": run.sentence} if run.state == "failed" else {}),
                        "seconds": dict(run.seconds),
                    }
                    for run in table.runs_of(cell)
                },
            }
            for cell in table.cells
        },
    }


def as_markdown(table: Table) -> str:
    """The table for EXPERIMENTS.md, one a group, best in bold."""
    arrows = {"higher": " ↑", "lower": " ↓", "": ""}
    parts = []
    for group, columns in table.groups.items():
        heads = [f"{c.title}{f' ({c.unit})' if c.unit else ''}{arrows[c.better]}" for c in columns]
        lines = [["", "n", *heads], ["---"] * (len(columns) + 2)]
        for cell in table.cells:
            shown = [
                f"**{text}**" if table.is_best(cell, column) else text
                for column, text in ((column, table.shown(cell, column)) for column in columns)
            ]
            lines.append([cell, table.counted(cell), *shown])
        body = "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)
        parts.append(f"**{group}**\n\n{body}\n")
    parts.append(f"Mean ± {SPREAD}; bold: {BEST}.\n")
    return "\n".join(parts)


def _score_as_json(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    values = {str(seed): value for seed, value in score.values.items()}
    return {
        "mean": score.mean,
        "spread": score.spread,
        "n": len(values),
        "best": score.is_best,
        "values": values,
    }


def _values(runs: Sequence[SweptRun], cell: str, column: Column) -> dict[int, float]:
    place = (column.group, column.row, column.name)
    return {
        run.seed: item.value
        for run in runs
        if run.cell == cell
        for item in run.measurements
        if (item.group, item.row, item.column) == place
    }


def _is_best(cell: str, scored: Mapping[str, Score], column: Column) -> bool:
    """Whether mean +- spread lies beyond that of every other cell."""
    score = scored[cell]
    others = [other for name, other in scored.items() if name != cell]
    if not column.better or not others or score.spread is None:
        return False
    sign = 1 if column.better == "higher" else -1
    return all(
        other.spread is not None and sign * (score.mean - other.mean) > score.spread + other.spread
        for other in others
    )
