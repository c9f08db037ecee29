"""Owner of report.html: one static page made from the files of a run directory, readable offline.

The page embeds everything and forbids itself every request. No model and no data is needed to make it.
"""

import base64
import html
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from PIL import Image

from davae.evaluate.results import Claim, Figure, Measurement, Results
from davae.report.figures import loss_curves

T = TypeVar("T")

_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_TINY = 400  # px; a narrower image is shown enlarged by a whole factor, with hard pixels
_WIDE = 640  # px; a wider image scrolls on a phone instead of shrinking until its labels cannot be read
_HARDWARE = {
    "cpu": "CPU",
    "cores": "Cores",
    "threads": "Threads",
    "memory_gb": "Memory (GB)",
    "gpu": "GPU",
    "torch": "PyTorch",
    "python": "Python",
    "system": "System",
}

_STYLE = (files("davae.report") / "style.css").read_text(encoding="utf-8")

# Nothing may be fetched, from anywhere: the page states it and the browser holds it.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def write_report(run_dir: Path, reference: Path | None = None) -> Path:
    """Write report.html into a run directory from results.json and, where present, the files beside it.

    Args:
        run_dir: holds results.json; stats.jsonl, run.json and recipe.yaml are shown where they exist.
        reference: a second results.json, its numbers shown beside this run's as "long run".

    Returns:
        The path of the page.
    """
    results = _results(run_dir / "results.json")
    run_file = run_dir / "run.json"
    run = json.loads(run_file.read_text(encoding="utf-8")) if run_file.is_file() else {}
    run |= results.run
    sets = [("this run", results.measurements)]
    if reference is not None:
        sets.append(("long run", _results(reference).measurements))
    title = str(run.get("title") or run.get("name") or run_dir.resolve().name)
    page = [
        _HEAD.format(title=_text(title), style=_STYLE),
        _header(title, run),
        _claims(results.claims),
        _numbers(sets),
        _figures(results.figures, run_dir),
        _curves(run_dir / "stats.jsonl"),
        _recipe(run_dir / "recipe.yaml"),
        _footer(run),
        "</body>\n</html>\n",
    ]
    path = run_dir / "report.html"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(part for part in page if part), encoding="utf-8")
    return temporary.replace(path)


def _results(path: Path) -> Results:
    if not path.is_file():
        raise FileNotFoundError(f"A report needs results; got none at {path}. Run 'davae evaluate RECIPE' first.")
    return Results.load(path)


def _header(title: str, run: dict[str, Any]) -> str:
    stages = {name: float(stage["seconds"]) for name, stage in run.get("stages", {}).items()}
    sentences = [_text(run["summary"])] if run.get("summary") else []
    if stages:
        count = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
        sentences.append(f"The run took {_duration(sum(stages.values()))} in {count}.")
    parts = ["<header>", '<p class="kicker">davae report</p>', f"<h1>{_text(title)}</h1>"]
    if sentences:
        parts.append(f'<p class="lead">{" ".join(sentences)}</p>')
    if stages:
        shades = [f"opacity:{1 - 0.75 * i / max(1, len(stages) - 1):.2f}" for i in range(len(stages))]
        spans = [f'<span style="flex-grow:{s:.3f};{c}"></span>' for s, c in zip(stages.values(), shades, strict=True)]
        items = [
            f'<li><i style="{shade}"></i>{_text(name)} <b>{_duration(seconds)}</b></li>'
            for (name, seconds), shade in zip(stages.items(), shades, strict=True)
        ]
        parts += [f'<div class="bar" aria-hidden="true">{"".join(spans)}</div>']
        parts += [f'<ul class="stages">{"".join(items)}</ul>']
    return "\n".join([*parts, "</header>\n<main>"])


def _claims(claims: Sequence[Claim]) -> str:
    if not claims:
        return ""
    items = []
    for claim in claims:
        name, mark, verdict = (
            ("holds", "&#10003;", "holds") if claim.holds else ("fails", "&#10007;", "does not hold")
        )
        detail = f'<span class="detail">{_text(claim.detail)}</span>' if claim.detail else ""
        items.append(
            f'<li class="{name}"><span class="mark" aria-hidden="true">{mark}</span><span>{_text(claim.text)}</span>'
            f'<span class="verdict">{verdict}</span>{detail}</li>'
        )
    held = sum(claim.holds for claim in claims)
    title = f"Claims <small>{held} of {len(claims)} hold</small>"
    return f'<h2>{title}</h2>\n<ul class="claims">\n' + "\n".join(items) + "\n</ul>"


def _numbers(sets: Sequence[tuple[str, Sequence[Measurement]]]) -> str:
    groups = _unique(item.group for _, items in sets for item in items)
    if not groups:
        return ""
    parts = ["<h2>Numbers</h2>"]
    if any(item.better for _, items in sets for item in items):
        parts.append('<p class="soft">An arrow points to better; the best number is bold.</p>')
    for group in groups:
        members = [(name, [item for item in items if item.group == group]) for name, items in sets]
        members = [(name, items) for name, items in members if items]
        parts.append(f"<section><h3>{_text(group)}</h3>")
        parts.append(_table(members, name_sets=len(sets) > 1))
        parts.append(_protocols(members, name_sets=len(sets) > 1))
        parts.append("</section>")
    return "\n".join(parts)


def _table(sets: Sequence[tuple[str, Sequence[Measurement]]], name_sets: bool) -> str:
    """Rows x columns of one group, a block of columns per set."""
    everything = [item for _, items in sets for item in items]
    rows = _unique(item.row for item in everything)
    # Numbers compare down a column, or along a row where the metrics are the rows.
    down = len({(i.column, i.unit, i.better) for i in everything}) == len({i.column for i in everything})
    names, heads = ['<th class="set"></th>'], ["<th></th>"]
    body: dict[str, list[str]] = {row: [] for row in rows}
    for number, (name, items) in enumerate(sets):
        columns = _unique(item.column for item in items)
        block = (" first" if number else "") + (" other" if name != "this run" else "")
        names.append(f'<th class="set{block}" colspan="{len(columns)}">{_text(name)}</th>')
        cells = {(item.row, item.column): item for item in items}
        for index, column in enumerate(columns):
            style = block if index == 0 else block.replace(" first", "")
            unit = _unit([i for i in everything if i.column == column]) if down else ""
            heads.append(f'<th scope="col" class="{style.strip()}">{_text(column)}{unit}</th>')
            for row in rows:
                body[row].append(_cell(cells.get((row, column)), items, everything, down, style))
    lines = ['<div class="scroll"><table>', "<thead>"]
    if name_sets:
        lines.append(f"<tr>{''.join(names)}</tr>")
    lines += [f"<tr>{''.join(heads)}</tr>", "</thead>", "<tbody>"]
    for row in rows:
        unit = "" if down else _unit([item for item in everything if item.row == row])
        lines.append(f'<tr><th scope="row">{_text(row)}{unit and " " + unit}</th>{"".join(body[row])}</tr>')
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
    shown = _number(item.value, [other.value for other in everything if comparable(other)])
    return f'<td class="{("best" if is_best else "") + style}">{shown}</td>'


def _unit(items: Sequence[Measurement]) -> str:
    kinds = _unique((item.unit, item.better) for item in items)
    arrows = {"higher": "&uarr;", "lower": "&darr;", "": ""}
    text = ", ".join(f"{_text(unit)} {arrows[better]}".strip() for unit, better in kinds)
    return f"<small>{text}</small>" if text else ""


def _protocols(sets: Sequence[tuple[str, Sequence[Measurement]]], name_sets: bool) -> str:
    """What all numbers of a set share once, then what differs, with the numbers it belongs to."""
    parts = []
    for name, items in sets:
        protocols = [{key: _plain(value) for key, value in item.protocol.items()} for item in items]
        if not any(protocols):
            continue
        shared = {k: v for k, v in protocols[0].items() if all(p.get(k) == v for p in protocols)}
        title = f"<p><b>{_text(name)}</b></p>" if name_sets else ""
        parts.append(title + _definitions(shared))
        rests = [{k: v for k, v in protocol.items() if k not in shared} for protocol in protocols]
        distinct: list[dict[str, str]] = []
        for rest in rests:
            if rest and rest not in distinct:
                distinct.append(rest)
        for rest in distinct:
            inside = [item for item, other in zip(items, rests, strict=True) if other == rest]
            parts.append(f"<p>{_text(_covered(inside, items))}</p>{_definitions(rest)}")
    return f"<details><summary>Protocol</summary>{''.join(parts)}</details>" if parts else ""


def _covered(inside: Sequence[Measurement], items: Sequence[Measurement]) -> str:
    """The shortest honest name of some cells: whole columns, whole rows, or the cells one by one."""
    cells = {(item.row, item.column) for item in inside}
    columns, rows = {column for _, column in cells}, {row for row, _ in cells}
    if cells == {(item.row, item.column) for item in items if item.column in columns}:
        return ", ".join(_unique(item.column for item in inside))
    if cells == {(item.row, item.column) for item in items if item.row in rows}:
        return ", ".join(_unique(item.row for item in inside))
    return ", ".join(f"{item.row} / {item.column}" for item in inside)


def _figures(figures: Sequence[Figure], run_dir: Path) -> str:
    if not figures:
        return ""
    parts = ["<h2>Figures</h2>"]
    for figure in figures:
        path = run_dir / figure.path
        if not path.is_file():
            raise FileNotFoundError(
                f"results.json names a figure that is not there: {path}. Run 'davae evaluate RECIPE' again."
            )
        caption = f"<b>{_text(figure.title)}</b> {_text(figure.caption)}"
        parts.append(
            f'<figure><div class="scroll">{_image(path.read_bytes(), figure.title, figure.path)}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    return "\n".join(parts)


def _image(data: bytes, title: str, source: str, dark: bytes | None = None) -> str:
    with Image.open(io.BytesIO(data)) as image:
        kind, (width, height) = image.format, image.size
    if kind not in _FORMATS:
        raise ValueError(f"A page shows {', '.join(_FORMATS)} images; got {kind} in {source}. Save it as PNG.")
    factor = max(1, 560 // width) if width < _TINY else 1
    name = "tiny" if factor > 1 else "wide" if width > _WIDE else ""
    tag = (
        f'<img class="{name}" alt="{_text(title)}" width="{width * factor}" height="{height * factor}" '
        f'src="{_data(data, _FORMATS[kind])}">'
    )
    if dark is None:
        return tag
    # A print of a page that is read in the dark is on white paper all the same.
    query = "screen and (prefers-color-scheme: dark)"
    return f'<picture><source media="{query}" srcset="{_data(dark, _FORMATS[kind])}">{tag}</picture>'


def _curves(path: Path) -> str:
    rows = _stats(path)
    stages = _unique(str(row["stage"]) for row in rows)
    parts = []
    for stage in stages:
        members = [row for row in rows if str(row["stage"]) == stage and "step" in row]
        keys = _unique(key for row in members for key, value in row.items() if _is_loss(key, value))
        apart: list[str] = [key for key in ("loss_base", "loss_detail") if key in keys]
        others = [key for key in keys if key != "loss" and key not in apart]
        panels: list[list[str]] = [
            ["loss"] if "loss" in keys else [],
            apart,
            *(others[i : i + 4] for i in range(0, len(others), 4)),
        ]
        drawn = [_curve_figure(stage, members, panel) for panel in panels if panel]
        if drawn:
            rates = [float(row["images_per_second"]) for row in members if "images_per_second" in row]
            rate = f" <small>median {_rate(median(rates))} images/s</small>" if rates else ""
            parts.append(f"<section><h3>{_text(stage)}{rate}</h3>")
            parts.append(f'<div class="curves">{"".join(drawn)}</div></section>')
    if not parts:
        return ""
    note = '<p class="soft">Faint: as logged. Solid: an exponential average over 2% of the curve.</p>'
    return "\n".join(["<h2>Training</h2>", note, *parts])


def _is_loss(key: str, value: Any) -> bool:
    return (key == "loss" or key.startswith("loss_")) and isinstance(value, int | float) and math.isfinite(value)


def _curve_figure(stage: str, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    title = keys[0] if len(keys) == 1 else " and ".join([", ".join(keys[:-1]), keys[-1]])
    pictures = []
    for dark in (False, True):
        buffer = io.BytesIO()
        # Flat colours on a transparent ground: a palette of 64 loses nothing and is a third of the size.
        loss_curves(rows, keys, title, dark).quantize(64, Image.Quantize.FASTOCTREE).save(
            buffer, "PNG", optimize=True
        )
        pictures.append(buffer.getvalue())
    return f"<figure>{_image(pictures[0], f'{stage}: {title} over steps', 'a loss curve', pictures[1])}</figure>"


def _stats(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # A run that was killed while logging leaves half a last line, which no one has to repair.
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}. Remove the line.") from error
        if not isinstance(row, dict) or "stage" not in row:
            raise ValueError(
                f"{path}, line {number}: expected an object with 'stage', got {line[:80]}. Remove the line."
            )
        rows.append(row)
    return rows


def _recipe(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<h2>Recipe</h2>\n<pre>{_text(path.read_text(encoding='utf-8').strip())}</pre>"


def _footer(run: dict[str, Any]) -> str:
    found: dict[str, Any] = {key: value for key, value in run.get("hardware", {}).items() if value is not None}
    order = [key for key in _HARDWARE if key in found] + [key for key in found if key not in _HARDWARE]
    lines = {_HARDWARE.get(key, key): _plain(found[key]) for key in order}
    return f"</main>\n<footer>{_definitions(lines)}</footer>"


def _definitions(items: dict[str, str]) -> str:
    if not items:
        return ""
    return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in items.items())}</dl>"


def _number(value: float, peers: Sequence[float]) -> str:
    """A number with the decimals that its line of the table needs: about four digits of the largest."""
    largest = max(abs(peer) for peer in peers)
    if all(float(peer).is_integer() for peer in peers):
        return f"{value:,.0f}"
    if largest < 1e-3:
        return f"{value:.2e}"
    decimals = 0 if largest >= 1e4 else 1 if largest >= 100 else 2 if largest >= 10 else 3 if largest >= 0.1 else 5
    return f"{value:,.{decimals}f}".replace("-", "\u2212")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, bool | dict | list | None) else str(value)


def _data(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _unique(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))
