"""Owner of the paper's figures as data (paper.yaml), and of ours beside them (ours.yaml)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import TypeAdapter

from davae.core.config import Config

Value = float | str
"""A figure, or a setting as the paper writes it."""


@dataclass(frozen=True, kw_only=True)
class Column(Config):
    """A figure of each row.

    Args:
        digits: after the point.
        better: which way.
        judge: commands that measure it, once images or weights are there; none where nothing is to be measured.
    """

    digits: int = 2
    better: Literal["higher", "lower", ""] = ""
    judge: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PaperRow(Config):
    """A row as it is printed.

    Args:
        values: by column.
        about: what else the paper says of it.
        map: first cells of the rows of docs/paper-map.md that state its figures.
        make: commands that make what is judged.
        blocked: why there is none.
    """

    values: Mapping[str, Value]
    about: str = ""
    map: tuple[str, ...] = ()
    make: tuple[str, ...] = ()
    blocked: str = ""


@dataclass(frozen=True, kw_only=True)
class OurRow(Config):
    """A row of ours.

    Args:
        values: by column.
        like: the row of the paper's that it is the counterpart of; empty for none.
    """

    values: Mapping[str, Value]
    like: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment(Config):
    """Rows of ours that were measured together.

    Args:
        table: the name of the table.
        experiment: heading in EXPERIMENTS.md.
        protocol: what was measured, on what.
        hardware: on which machine.
        command: what measures it again.
        rows: by name.
        digits: after the point, where they are others than the paper's.
    """

    table: str
    experiment: str
    protocol: str
    hardware: str
    command: str
    rows: Mapping[str, OurRow]
    digits: Mapping[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Of all its rows."""
        return tuple(dict.fromkeys(name for row in self.rows.values() for name in row.values))


@dataclass(frozen=True, kw_only=True)
class PaperTable(Config):
    """A table of the paper, and what we have of it.

    Args:
        title: of the table.
        source: where it stands.
        protocol: what the paper says of its figures.
        columns: by name.
        rows: by name.
        ours: what was measured here.
    """

    title: str
    source: str
    protocol: str
    columns: Mapping[str, Column]
    rows: Mapping[str, PaperRow]
    ours: tuple[Experiment, ...] = ()

    @property
    def apart(self) -> dict[int, Experiment]:
        """Number -> experiment that measured something else than the paper did, and has a table of its own."""
        numbered = enumerate(self.ours, start=1)
        return {number: item for number, item in numbered if not set(item.columns) <= set(self.columns)}

    @property
    def lines(self) -> list["Line"]:
        """Rows in reading order: each of the paper's, beneath it ours that are like it; then the others of ours."""
        counterparts: dict[str, list[Line]] = {}
        for number, experiment in enumerate(self.ours, start=1):
            for name, row in experiment.rows.items():
                if number not in self.apart:
                    counterparts.setdefault(row.like, []).append(Line(name, "", row.values, number))
        lines: list[Line] = []
        for name, printed in self.rows.items():
            lines += [Line(name, printed.about, printed.values), *counterparts.get(name, [])]
        return lines + counterparts.get("", [])

    def lines_apart(self, number: int) -> list["Line"]:
        """Rows of an experiment that stands apart, with what they are like in the paper's table."""
        rows = self.ours[number - 1].rows.items()
        return [Line(name, row.like and f"as {row.like}", row.values, number) for name, row in rows]

    def shown(self, line: "Line", column: str) -> str:
        """A cell as it is read; empty where there is no figure."""
        value = line.values.get(column, "")
        if isinstance(value, str):
            return value
        digits = self.columns[column].digits if column in self.columns else 1
        return f"{value:.{self.ours[line.experiment - 1].digits.get(column, digits) if line.experiment else digits}f}"

    @property
    def makers(self) -> dict[str, Sequence[str]]:
        """Rows -> commands that make what is judged."""
        return _alike({name: row.make for name, row in self.rows.items()})

    @property
    def judges(self) -> dict[str, Sequence[str]]:
        """Columns -> commands that measure them, once that is made."""
        return _alike({name: column.judge for name, column in self.columns.items()})

    @property
    def blocked(self) -> dict[str, str]:
        """Row -> why nobody can make it here."""
        return {name: row.blocked for name, row in self.rows.items() if row.blocked}


@dataclass(frozen=True)
class Line:
    """A line of a table as it is shown.

    Args:
        name: of the row.
        about: what else is said of it.
        values: by column.
        experiment: number of the experiment from 1; None for a row of the paper's.
    """

    name: str
    about: str
    values: Mapping[str, Value]
    experiment: int | None = None


@cache
def paper_tables() -> Mapping[str, PaperTable]:
    """Every table by its short name, in the paper's order."""
    tables = TypeAdapter(dict[str, PaperTable]).validate_python(_read("paper.yaml"))
    experiments = TypeAdapter(list[Experiment]).validate_python(_read("ours.yaml"))
    for experiment in experiments:
        rows = tables[experiment.table].rows
        for name, row in experiment.rows.items():
            if row.like and row.like not in rows:
                raise ValueError(f"ours.yaml: row {name!r} is like {row.like!r}, which {experiment.table} has not.")
    return {
        name: replace(table, ours=tuple(item for item in experiments if item.table == name))
        for name, table in tables.items()
    }


def _alike(commands: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The same with one entry for all names that have the same commands; none for those without."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, lines in commands.items():
        if lines:
            names.setdefault(tuple(lines), []).append(name)
    return {"; ".join(alike): lines for lines, alike in names.items()}


def _read(name: str) -> object:
    return yaml.safe_load((files("davae.report.tables") / name).read_text(encoding="utf-8"))
