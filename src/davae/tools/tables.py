"""`davae tables`: the paper's tables for a terminal and as a page."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from davae.report.tables import PaperTable, paper_tables, write_page

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
        yield _grid(name, table)
        yield from map(Text, _notes(table))


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


def _grid(name: str, table: PaperTable) -> "Table":
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(f"{table.title} [{name}]"), caption=Text(table.source), caption_justify="left")
    grid.add_column("")
    for column, settings in table.all_columns.items():
        grid.add_column(Text(f"{column}{_ARROWS[settings.better]}"), justify="right")
    for line in table.lines:
        title = line.name if line.experiment is None else f"  ours {line.experiment}: {line.name}"
        cells = (Text(table.shown(line, column)) for column in table.all_columns)
        grid.add_row(Text(title), *cells, style=None if line.experiment is None else "bold")
    return grid


def _notes(table: PaperTable) -> Iterator[str]:
    yield f"  paper: {table.protocol}"
    for number, item in enumerate(table.ours, start=1):
        yield f"  ours {number}: {item.protocol}; {item.hardware}; {item.command}"
    for what, commands in (("make", table.makers), ("judge", table.judges)):
        for name, lines in commands.items():
            yield f"  {what} {name}:"
            yield from (f"      {line}" for line in lines)
    for name, reason in table.blocked.items():
        yield f"  not to be had, {name}: {reason}"
    yield ""
