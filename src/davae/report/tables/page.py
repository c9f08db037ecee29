"""The tables as one page that can be read offline."""

from collections.abc import Mapping
from pathlib import Path

from davae.core.files import write_text
from davae.report.markup import definitions, document, escaped
from davae.report.tables.tables import Line, PaperTable

_ARROWS = {"higher": " &uarr;", "lower": " &darr;", "": ""}
_TITLE = "The paper's tables"


def write_page(tables: Mapping[str, PaperTable], path: Path) -> Path:
    """Write the page; returns its path."""
    parts = [_HEAD, *(_section(name, table) for name, table in tables.items()), "</main>"]
    write_text(path, document(_TITLE, parts))
    return path


_HEAD = (
    f'<header><p class="kicker">davae tables</p><h1>{_TITLE}</h1>'
    '<p class="lead">What DA-VAE reports, what was measured here, on what and how, and the commands for the rest. '
    "Ours are small counterparts, never the paper's protocol: compare them among themselves.</p></header><main>"
)


def _section(name: str, table: PaperTable) -> str:
    parts = [
        f"<section><h2>{escaped(table.title)} <small>{escaped(name)}</small></h2>",
        f'<p class="soft">{escaped(table.source)}. {escaped(table.protocol)}</p>',
        _table(table),
        *(_experiment(table, number) for number in range(1, len(table.ours) + 1)),
        _commands(table),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _table(table: PaperTable) -> str:
    columns = table.all_columns
    heads = "".join(
        f'<th scope="col">{escaped(name)}<small>{_ARROWS[column.better]}</small></th>'
        for name, column in columns.items()
    )
    rows = "\n".join(_row(table, line) for line in table.lines)
    return f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(table: PaperTable, line: Line) -> str:
    is_ours = line.experiment is not None
    note = f" <small>ours {line.experiment}</small>" if is_ours else f"<br><small>{escaped(line.about)}</small>"
    cells = []
    for column in table.all_columns:
        shown = escaped(table.shown(line, column))
        style = "" if shown else "empty"
        cells.append(f'<td class="{style}">{f"<b>{shown}</b>" if is_ours and shown else shown or "&ndash;"}</td>')
    return f'<tr><th scope="row">{escaped(line.name)}{note}</th>{"".join(cells)}</tr>'


def _experiment(table: PaperTable, number: int) -> str:
    item = table.ours[number - 1]
    facts = {
        "measured": item.protocol,
        "hardware": item.hardware,
        "command": item.command,
        "in EXPERIMENTS.md": item.experiment,
    }
    return f"<p><b>ours {number}</b></p>{definitions(facts)}"


def _commands(table: PaperTable) -> str:
    made = {f"make: {name}": " && ".join(commands) for name, commands in table.makers.items()}
    judged = {f"judge: {name}": " && ".join(commands) for name, commands in table.judges.items()}
    blocked = {f"not to be had: {name}": reason for name, reason in table.blocked.items()}
    if not (made or judged or blocked):
        return ""
    listed = definitions({**made, **judged, **blocked})
    return f"<details><summary>Commands for what is missing</summary>{listed}</details>"
