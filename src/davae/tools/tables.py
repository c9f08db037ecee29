"""`davae tables`: the paper's tables for a terminal and as a page."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from davae.report.tables import PaperTable, paper_tables, write_page
from davae.report.tables.tables import Column, Line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def chosen(names: Sequence[str]) -> Mapping[str, PaperTable]:
    """The tables of these names; all without one.

    Raises:
        ValueError: there is no table of a name.
    """
    tables = paper_tables()
    for name in names:
        if name not in tables:
            close = difflib.get_close_matches(name, tables, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"There is no table {name!r}; allowed are {', '.join(tables)}.{hint}")
    return {name: tables[name] for name in names or tables}


def show(tables: Mapping[str, PaperTable]) -> "Iterator[Table | Text]":
    """What a terminal shows of tables: each, then protocols and commands, a line each."""
    from rich.text import Text

    for name, table in tables.items():
        yield _grid(f"{table.title} [{name}]", table, table.columns, table.lines)
        yield Text(f"  {table.source}. {table.protocol}")
        for number, item in enumerate(table.ours, start=1):
            if number in table.apart:
                yield Text("")
                yield _grid(
                    f"Measured here, {number} [{name}]",
                    table,
                    dict.fromkeys(item.columns, Column()),
                    table.lines_apart(number),
                )
            yield Text(f"  here {number}: {item.protocol}; {item.hardware}; {item.command}")
        yield from map(Text, _commands(table))


def draw(tables: Mapping[str, PaperTable], out: Path) -> Path:
    """The tables as a page; returns its path.

    Raises:
        ValueError: there is a folder of that name.
    """
    if out.is_dir():
        raise ValueError(
            f"Cannot write the page to {out}: it is a folder. Name a file, for example {out}/tables.html."
        )
    return write_page(tables, out)


def _grid(title: str, table: PaperTable, columns: Mapping[str, Column], lines: Sequence[Line]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    grid.add_column("", overflow="fold")
    for column, settings in columns.items():
        grid.add_column(Text(f"{column}{_ARROWS[settings.better]}"), justify="right", overflow="fold")
    for line in lines:
        is_beneath = line.experiment is not None and line.experiment not in table.apart
        name = f"  here {line.experiment}: {line.name}" if is_beneath else line.name
        cells = (Text(table.shown(line, column)) for column in columns)
        grid.add_row(Text(name), *cells, style=None if line.experiment is None else "bold")
    return grid


def _commands(table: PaperTable) -> Iterator[str]:
    for what, commands in (("make", table.makers), ("judge", table.judges)):
        for name, lines in commands.items():
            yield f"  {what} {name}:"
            yield from (f"      {line}" for line in lines)
    for name, reason in table.blocked.items():
        yield f"  not to be had, {name}: {reason}"
    yield ""
