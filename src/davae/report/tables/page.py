"""The tables as one page that can be read offline."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from davae.core.files import write_text
from davae.report.markup import definitions, document, escaped
from davae.report.tables.tables import Column, Line, PaperTable

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
    "Bold numbers were measured here. They are small counterparts, never of the paper's protocol: compare them among "
    "themselves. What the paper calls ours is its authors'.</p></header><main>"
)


def _section(name: str, table: PaperTable) -> str:
    parts = [
        f"<section><h2>{escaped(table.title)} <small>{escaped(name)}</small></h2>",
        f'<p class="soft">{escaped(table.source)}. {escaped(table.protocol)}</p>',
        _table(table, table.columns, table.lines),
        *(_experiment(table, number) for number in range(1, len(table.ours) + 1)),
        _commands(table),
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _table(table: PaperTable, columns: Mapping[str, Column], lines: Sequence[Line]) -> str:
    heads = "".join(
        f'<th scope="col">{escaped(name)}<small>{_ARROWS[column.better]}</small></th>'
        for name, column in columns.items()
    )
    rows = "\n".join(_row(table, columns, line) for line in lines)
    return f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(table: PaperTable, columns: Iterable[str], line: Line) -> str:
    is_ours = line.experiment is not None
    notes = [f" <small>here {line.experiment}</small>"] if is_ours and line.experiment not in table.apart else []
    notes += [f"<br><small>{escaped(line.about)}</small>"] if line.about else []
    cells = []
    for column in columns:
        shown = escaped(table.shown(line, column))
        style = "" if shown else "empty"
        cells.append(f'<td class="{style}">{f"<b>{shown}</b>" if is_ours and shown else shown or "&ndash;"}</td>')
    return f'<tr><th scope="row">{escaped(line.name)}{"".join(notes)}</th>{"".join(cells)}</tr>'


def _experiment(table: PaperTable, number: int) -> str:
    item = table.ours[number - 1]
    facts = {
        "measured": item.protocol,
        "hardware": item.hardware,
        "command": item.command,
        "record": f"EXPERIMENTS.md, {item.experiment}",
    }
    is_apart = number in table.apart
    own = _table(table, dict.fromkeys(item.columns, Column()), table.lines_apart(number)) if is_apart else ""
    return f'<div class="here"><h3>Measured here, {number}</h3>{own}{definitions(facts)}</div>'


def _commands(table: PaperTable) -> str:
    made = {f"To make {name}": commands for name, commands in table.makers.items()}
    judged = {f"To measure {name}": commands for name, commands in table.judges.items()}
    blocks = [
        f"<p>{escaped(what)}</p><pre>{escaped(chr(10).join(commands))}</pre>"
        for what, commands in {**made, **judged}.items()
    ]
    blocks += [f"<p>Not to be had, {escaped(name)}: {escaped(why)}.</p>" for name, why in table.blocked.items()]
    if not blocks:
        return ""
    return f"<details><summary>Commands for what is missing</summary>{''.join(blocks)}</details>"
