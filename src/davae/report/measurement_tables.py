"""The numbers of a page: a table a group, what compares emphasised, notes and the protocol beneath."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from davae.evaluate.results import INTERVAL, NOTE, Measurement
from davae.report.markup import definitions, escaped, number, plain

T = TypeVar("T")


def measurement_tables(sets: Sequence[tuple[str, Sequence[Measurement]]]) -> str:
    """The section of all numbers; empty without any.

    Args:
        sets: (name, measurements) of this run, and of one that is shown beside it.
    """
    groups = _unique(item.group for _, items in sets for item in items)
    if not groups:
        return ""
    parts = ["<h2>Numbers</h2>"]
    if legend := _legend([item for _, items in sets for item in items]):
        parts.append(f'<p class="soft">{legend}</p>')
    for group in groups:
        members = [(name, [item for item in items if item.group == group]) for name, items in sets]
        members = [(name, items) for name, items in members if items]
        parts.append(f"<section><h3>{escaped(group)}</h3>")
        parts.append(_table(members, name_sets=len(sets) > 1))
        parts.append(_notes([item for _, items in members for item in items]))
        parts.append(_protocols(members, name_sets=len(sets) > 1))
        parts.append("</section>")
    return "\n".join(parts)


def _legend(items: Sequence[Measurement]) -> str:
    """How to read the tables."""
    sentences = []
    if any(item.better for item in items):
        sentences.append("An arrow points to better; the best number is bold.")
    if any(INTERVAL in item.protocol for item in items):
        sentences.append("Beneath a number stands its 95% interval.")
    return " ".join(sentences)


def _notes(items: Sequence[Measurement]) -> str:
    """What a reader has to know before comparing; empty for nothing."""
    notes = _unique(str(item.protocol[NOTE]) for item in items if NOTE in item.protocol)
    return f'<ul class="notes">{"".join(f"<li>{escaped(note)}</li>" for note in notes)}</ul>' if notes else ""


def _table(sets: Sequence[tuple[str, Sequence[Measurement]]], name_sets: bool) -> str:
    """Rows x columns of one group, a block of columns per set."""
    everything = [item for _, items in sets for item in items]
    rows = _unique(item.row for item in everything)
    # Numbers compare down a column, or along a row where the metrics are the rows.
    down = len({(i.column, i.unit, i.better) for i in everything}) == len({i.column for i in everything})
    names, heads = ['<th class="set"></th>'], ["<th></th>"]
    body: dict[str, list[str]] = {row: [] for row in rows}
    for position, (name, items) in enumerate(sets):
        columns = _unique(item.column for item in items)
        block = (" first" if position else "") + (" other" if name != "this run" else "")
        names.append(f'<th class="set{block}" colspan="{len(columns)}">{escaped(name)}</th>')
        cells = {(item.row, item.column): item for item in items}
        for index, column in enumerate(columns):
            style = block if index == 0 else block.replace(" first", "")
            unit = _unit([i for i in everything if i.column == column]) if down else ""
            heads.append(f'<th scope="col" class="{style.strip()}">{escaped(column)}{unit}</th>')
            for row in rows:
                body[row].append(_cell(cells.get((row, column)), items, everything, down, style))
    lines = ['<div class="scroll"><table>', "<thead>"]
    if name_sets:
        lines.append(f"<tr>{''.join(names)}</tr>")
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for row in rows:
        unit = "" if down else _unit([item for item in everything if item.row == row])
        lines.append(f'<tr><th scope="row">{escaped(row)}{unit and " " + unit}</th>{"".join(body[row])}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def _cell(
    item: Measurement | None, items: Sequence[Measurement], everything: Sequence[Measurement], down: bool, style: str
) -> str:
    if item is None:
        return f'<td class="empty{style}">&ndash;</td>'

    def comparable(other: Measurement) -> bool:
        same_line = other.column == item.column if down else other.row == item.row
        return same_line and (other.unit, other.better) == (item.unit, item.better)

    rivals = [other.value for other in items if comparable(other)]
    best = max(rivals) if item.better == "higher" else min(rivals)
    is_best = bool(item.better) and item.value == best and len(set(rivals)) > 1
    peers = [other.value for other in everything if comparable(other)]
    ends = [number(end, peers) for end in item.protocol.get(INTERVAL, ())]
    interval = f"<br><small>{' to '.join(ends)}</small>" if ends else ""
    return f'<td class="{("best" if is_best else "") + style}">{number(item.value, peers)}{interval}</td>'


def _unit(items: Sequence[Measurement]) -> str:
    kinds = _unique((item.unit, item.better) for item in items)
    arrows = {"higher": "&uarr;", "lower": "&darr;", "": ""}
    text = ", ".join(f"{escaped(unit)} {arrows[better]}".strip() for unit, better in kinds)
    return f"<small>{text}</small>" if text else ""


def _protocols(sets: Sequence[tuple[str, Sequence[Measurement]]], name_sets: bool) -> str:
    """What all numbers of a set share once, then what differs, with the numbers it belongs to."""
    parts = []
    for name, items in sets:
        protocols = [_protocol(item) for item in items]
        if not any(protocols):
            continue
        shared = {k: v for k, v in protocols[0].items() if all(p.get(k) == v for p in protocols)}
        title = f"<p><b>{escaped(name)}</b></p>" if name_sets else ""
        parts.append(title + definitions(shared))
        rests = [{k: v for k, v in protocol.items() if k not in shared} for protocol in protocols]
        distinct: list[dict[str, str]] = []
        for rest in rests:
            if rest and rest not in distinct:
                distinct.append(rest)
        for rest in distinct:
            inside = [item for item, other in zip(items, rests, strict=True) if other == rest]
            parts.append(f"<p>{escaped(_covered(inside, items))}</p>{definitions(rest)}")
    return f"<details><summary>Protocol</summary>{''.join(parts)}</details>" if parts else ""


def _protocol(item: Measurement) -> dict[str, str]:
    """But for what stands in the table and beneath it."""
    rest = {key: value for key, value in item.protocol.items() if key not in (INTERVAL, NOTE)}
    return {key.replace("_", " "): plain(value) for key, value in rest.items()}


def _covered(inside: Sequence[Measurement], items: Sequence[Measurement]) -> str:
    """The shortest honest name of some cells: whole columns, whole rows, or the cells one by one."""
    cells = {(item.row, item.column) for item in inside}
    columns, rows = {column for _, column in cells}, {row for row, _ in cells}
    if cells == {(item.row, item.column) for item in items if item.column in columns}:
        return ", ".join(_unique(item.column for item in inside))
    if cells == {(item.row, item.column) for item in items if item.row in rows}:
        return ", ".join(_unique(item.row for item in inside))
    return ", ".join(f"{item.row} / {item.column}" for item in inside)


def _unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
