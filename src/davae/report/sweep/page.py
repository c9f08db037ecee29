"""Owner of sweep.html: the table of a sweep, curves of all cells over each other, images of the same seeds."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davae.core.files import write_text
from davae.report.figures import labelled_strip, overlaid_curves
from davae.report.markup import document, embedded_image, escaped, flat_png, png
from davae.report.sweep.table import BEST, SPREAD, Column, SweptRun, Table
from davae.train import journal

SHOWN = 8
"""Images a row; grids drawn on the way, likewise."""
_ARROWS = {"higher": "&uarr;", "lower": "&darr;", "": ""}


def write_page(
    path: Path,
    table: Table,
    title: str,
    about: str,
    changes: Mapping[str, Mapping[str, str]],
    curves: Sequence[str],
) -> Path:
    """Write the page of a sweep, of whatever is there of it; returns its path.

    Args:
        path: of the page.
        table: of its runs.
        title: plain text.
        about: plain text below it.
        changes: cell -> keys of the recipe that it sets, with their values as text.
        curves: "stage / value" of what is drawn over steps; `*` stands for any text.
    """
    parts = [
        _header(table, title, about),
        _numbers(table),
        _failures(table),
        _images(table),
        _on_the_way(table),
        _curves(table, curves),
        _cells(table, changes),
        "</main>",
    ]
    write_text(path, document(title, parts))
    return path


def _header(table: Table, title: str, about: str) -> str:
    done = sum(run.state == "done" for run in table.runs)
    seeds = len({run.seed for run in table.runs})
    counted = f"{len(table.cells)} cells, {seeds} {'seeds' if seeds > 1 else 'seed'} each"
    progress = f"{counted}; {done} of {len(table.runs)} runs are done."
    return "\n".join(
        [
            f'<header><p class="kicker">davae sweep</p><h1>{escaped(title)}</h1>',
            f'<p class="lead">{escaped(about)}</p>' if about else "",
            f'<p class="soft">{progress}</p></header>\n<main>',
        ]
    )


def _numbers(table: Table) -> str:
    if not table.columns:
        return ""
    note = f"Mean over n seeds &plusmn; {escaped(SPREAD)}. An arrow points to better; bold: {escaped(BEST)}."
    return "\n".join(
        [
            f'<h2>Numbers</h2>\n<p class="soft">{note}</p>',
            *(
                f"<section><h3>{escaped(group)}</h3>{_group(table, columns)}</section>"
                for group, columns in table.groups.items()
            ),
        ]
    )


def _group(table: Table, columns: Sequence[Column]) -> str:
    heads = "".join(
        f'<th scope="col">{escaped(column.name)}<small>{escaped(column.row)}<br>{escaped(column.unit)} '
        f"{_ARROWS[column.better]}</small></th>"
        for column in columns
    )
    lines = []
    for cell in table.cells:
        numbers = "".join(_cell(table, cell, column) for column in columns)
        lines.append(f'<tr><th scope="row">{escaped(cell)}</th><td>{escaped(table.counted(cell))}</td>{numbers}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th></th><th scope="col">n</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(table: Table, cell: str, column: Column) -> str:
    style = "best" if table.is_best(cell, column) else "" if (cell, column) in table.scores else "empty"
    return f'<td class="{style}">{escaped(table.shown(cell, column))}</td>'


def _failures(table: Table) -> str:
    failed = [run for run in table.runs if run.state == "failed"]
    if not failed:
        return ""
    items = "".join(
        f'<li class="fails"><span class="mark" aria-hidden="true">&#10007;</span>'
        f"<span>{escaped(run.cell)}, seed {run.seed}</span>"
        f'<span class="verdict">failed</span><span class="detail">{escaped(run.sentence)}</span></li>'
        for run in failed
    )
    return f'<h2>Failed <small>{len(failed)} of {len(table.runs)} runs</small></h2>\n<ul class="claims">{items}</ul>'


def _images(table: Table) -> str:
    """A row a cell, of its first seed that is done; column k is the same noise in every row."""
    rows = [(cell, images) for cell in table.cells if (images := _drawn(table.runs_of(cell))) is not None]
    kept = [(cell, images) for cell, images in rows if images.shape == rows[0][1].shape]
    if not kept:
        return ""
    caption = "Drawn images in turn, not chosen. A column is one seed and one class or prompt. A row is a cell."
    return _figure("Images", "Same seeds, every cell", caption, kept)


def _on_the_way(table: Table) -> str:
    """A row a cell, over the steps at which its fine-tuning drew a grid."""
    rows: list[tuple[str, Tensor]] = []
    steps: list[int] = []
    for cell in table.cells:
        grids = _grids(table.runs_of(cell))
        if not grids or (steps and list(grids) != steps):
            continue
        steps = list(grids)
        rows.append((cell, torch.stack([_pixels(path) for path in grids.values()])))
    if not rows:
        return ""
    caption = (
        f"Fixed seeds and classes or prompts, averaged weights, after {', '.join(f'{step:,}' for step in steps)} "
        f"steps of fine-tuning from left to right."
    )
    return _figure("On the way", "From the first steps on", caption, rows)


def _figure(heading: str, title: str, caption: str, rows: Sequence[tuple[str, Tensor]]) -> str:
    strip = embedded_image(png(labelled_strip(rows)), title, "a strip of images")
    return (
        f'<h2>{heading}</h2>\n<figure><div class="scroll">{strip}</div>'
        f"<figcaption><b>{escaped(title)}</b> {escaped(caption)}</figcaption></figure>"
    )


def _drawn(runs: Sequence[SweptRun]) -> Tensor | None:
    """The first images of the first of these runs that has some, uint8 [N, 3, H, W]."""
    for run in runs:
        paths = sorted((run.folder / "samples").glob("[0-9]*.png"))[:SHOWN] if run.state == "done" else []
        if paths:
            return torch.stack([_pixels(path) for path in paths])
    return None


def _grids(runs: Sequence[SweptRun]) -> dict[int, Path]:
    """Step -> grid of the first of these runs that drew some; `SHOWN` of them, the first ones close to each other."""
    for run in runs:
        paths = sorted((run.folder / "previews").glob("finetune-*.png")) if run.state == "done" else []
        if paths:
            kept = dict.fromkeys(np.geomspace(1, len(paths), SHOWN).round().astype(int).tolist())
            return {int(paths[place - 1].stem.rpartition("-")[2]): paths[place - 1] for place in kept}
    return {}


def _pixels(path: Path) -> Tensor:
    """An image file as uint8 [3, H, W]; what is transparent becomes white."""
    with Image.open(path) as image:
        layer = image.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    page.alpha_composite(layer)
    return torch.from_numpy(np.array(page.convert("RGB"))).permute(2, 0, 1)


def _curves(table: Table, patterns: Sequence[str]) -> str:
    rows = {
        cell: [journal.rows(run.folder / "stats.jsonl") for run in table.runs_of(cell) if run.state != "waits"]
        for cell in table.cells
    }
    known = dict.fromkeys(
        (str(row["stage"]), key)
        for runs in rows.values()
        for run in runs
        for row in run
        for key in row
        if key not in ("stage", "step")
    )
    wanted = [place for pattern in patterns for place in known if all(map(fnmatchcase, place, pattern.split(" / ")))]
    figures = []
    for stage, key in dict.fromkeys(wanted):
        lines = {
            cell: [found for run in runs if (found := [row for row in run if row["stage"] == stage and key in row])]
            for cell, runs in rows.items()
        }
        title = f"{stage}: {key}"
        light, dark = (flat_png(overlaid_curves(lines, key, title, is_dark)) for is_dark in (False, True))
        figures.append(f"<figure>{embedded_image(light, f'{title} over steps, by cell', 'a curve', dark)}</figure>")
    if not figures:
        return ""
    note = '<p class="soft">Thin: a seed. Solid: the mean over seeds. Both averaged over 2% of the curve.</p>'
    return f'<h2>Curves</h2>\n{note}\n<div class="curves">{"".join(figures)}</div>'


def _cells(table: Table, changes: Mapping[str, Mapping[str, str]]) -> str:
    lines = []
    for cell in table.cells:
        settings = ", ".join(f"{key} = {value}" for key, value in changes[cell].items()) or "as the recipe"
        lines.append(
            f'<tr><th scope="row">{escaped(cell)}</th><td>{escaped(table.counted(cell))}</td>'
            f"<td>{escaped(table.time(cell))}</td><td>{escaped(settings)}</td></tr>"
        )
    note = "Time of one run alone, mean over seeds: what was shared counts in every run that took it."
    return (
        f'<h2>Cells</h2>\n<p class="soft">{note}</p><div class="scroll"><table><thead><tr><th></th>'
        f'<th scope="col">runs</th><th scope="col">time</th><th scope="col">sets</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
