"""What a terminal shows of a sweep."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from davae.report.sweep.table import BEST, SPREAD, Table

if TYPE_CHECKING:
    from rich.table import Table as Grid

_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def tables_of(table: Table) -> "Iterator[Grid]":
    """How far every cell is, then its numbers, a table a group; the last one says what a spread is."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(title="Cells")
    grid.add_column("")
    for head in ("runs", "time"):
        grid.add_column(head, justify="right")
    grid.add_column("failed")
    for cell in table.cells:
        failed = [f"seed {run.seed}: {run.sentence}" for run in table.runs_of(cell) if run.state == "failed"]
        grid.add_row(Text(cell), table.counted(cell), table.time(cell), Text("\n".join(failed)))
    yield grid
    for group, columns in table.groups.items():
        grid = Grid(title=Text(group))
        grid.add_column("")
        for column in columns:
            unit = f" ({column.unit})" if column.unit else ""
            grid.add_column(Text(f"{column.title}{unit}{_ARROWS[column.better]}"), justify="right")
        for cell in table.cells:
            shown = [
                Text(table.shown(cell, column), style="bold" if table.is_best(cell, column) else "")
                for column in columns
            ]
            grid.add_row(Text(cell), *shown)
        grid.caption = f"mean ± {SPREAD}; bold: {BEST}"
        yield grid
