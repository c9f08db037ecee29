"""Owner of report.html: one static page made from the files of a run directory, readable offline.

The page embeds everything and forbids itself every request. No model and no data is needed to make it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from davae.core.files import write_text
from davae.core.state import found_json, parse_json
from davae.evaluate.results import Claim, Figure, Results
from davae.report.figures import loss_curves
from davae.report.markup import definitions, document, duration, embedded_image, escaped, flat_png, plain, rate
from davae.report.measurement_tables import measurement_tables
from davae.train import journal

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


@dataclass
class _Spent:
    """Of a stage."""

    seconds: float


@dataclass
class _About:
    """What the page says of a run as a whole: what is known of it in run.json, and above that in results.json."""

    name: str | None = None
    title: str | None = None
    summary: str | None = None
    hardware: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, _Spent] = field(default_factory=dict)


def write_report(run_dir: Path, reference: Path | None = None, sections: Sequence[str] = ()) -> Path:
    """Write report.html into a run directory from results.json and, where present, the files beside it.

    Args:
        run_dir: holds results.json; stats.jsonl, run.json and recipe.yaml are shown where they exist.
        reference: a second results.json, its numbers shown beside this run's as "long run".
        sections: of the page beside its own, as markup; they stand beneath the figures.

    Returns:
        The path of the page.
    """
    results = _results(run_dir / "results.json")
    recorded = found_json(run_dir / "run.json", dict[str, Any]) or {}
    run = parse_json(run_dir / "run.json", recorded | results.run, _About, "Run 'davae evaluate RECIPE' again.")
    sets = [("this run", results.measurements)]
    if reference is not None:
        sets.append(("long run", _results(reference).measurements))
    title = run.title or run.name or run_dir.resolve().name
    page = [
        _header(title, run),
        _figures(results.figures, run_dir),
        *sections,
        _claims(results.claims),
        measurement_tables(sets),
        _curves(run_dir / "stats.jsonl"),
        _recipe(run_dir / "recipe.yaml"),
        _footer(run),
    ]
    path = run_dir / "report.html"
    write_text(path, document(title, page))
    return path


def _results(path: Path) -> Results:
    if not path.is_file():
        raise FileNotFoundError(f"A report needs results; got none at {path}. Run 'davae evaluate RECIPE' first.")
    return Results.load(path)


def _header(title: str, run: _About) -> str:
    stages = {name: stage.seconds for name, stage in run.stages.items()}
    sentences = [escaped(run.summary)] if run.summary else []
    if stages:
        count = f"{len(stages)} stages" if len(stages) > 1 else "one stage"
        sentences.append(f"The run took {duration(sum(stages.values()))} in {count}.")
    parts = ["<header>", '<p class="kicker">davae report</p>', f"<h1>{escaped(title)}</h1>"]
    if sentences:
        parts.append(f'<p class="lead">{" ".join(sentences)}</p>')
    if stages:
        shades = [f"opacity:{1 - 0.75 * i / max(1, len(stages) - 1):.2f}" for i in range(len(stages))]
        spans = [f'<span style="flex-grow:{s:.3f};{c}"></span>' for s, c in zip(stages.values(), shades, strict=True)]
        items = [
            f'<li><i style="{shade}"></i>{escaped(name)} <b>{duration(seconds)}</b></li>'
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
        detail = f'<span class="detail">{escaped(claim.detail)}</span>' if claim.detail else ""
        items.append(
            f'<li class="{name}"><span class="mark" aria-hidden="true">{mark}</span>'
            f'<span>{escaped(claim.text)}</span><span class="verdict">{verdict}</span>{detail}</li>'
        )
    held = sum(claim.holds for claim in claims)
    title = f"Claims <small>{held} of {len(claims)} hold</small>"
    return f'<h2>{title}</h2>\n<ul class="claims">\n' + "\n".join(items) + "\n</ul>"


def _figures(figures: Sequence[Figure], run_dir: Path) -> str:
    if not figures:
        return ""
    parts = ["<h2>Pictures</h2>"]
    for figure in figures:
        caption = f"<b>{escaped(figure.title)}</b> {escaped(figure.caption)}"
        shown = _views(figure, run_dir) if figure.views else _picture(run_dir, figure.path, figure.title)
        parts.append(f'<figure><div class="scroll">{shown}</div><figcaption>{caption}</figcaption></figure>')
    return "\n".join(parts)


def _picture(run_dir: Path, path: str, title: str) -> str:
    if not (run_dir / path).is_file():
        raise FileNotFoundError(
            f"results.json names a figure that is not there: {run_dir / path}. Run 'davae evaluate RECIPE' again."
        )
    return embedded_image((run_dir / path).read_bytes(), title, path)


def _views(figure: Figure, run_dir: Path) -> str:
    """Pictures that lie on each other, and what changes between them; one below the other without script."""
    pictures = "".join(
        f'<div class="view"><span>{escaped(view.label)}</span>'
        f"{_picture(run_dir, view.path, f'{figure.title}: {view.label}')}</div>"
        for view in figure.views
    )
    end, start = (100, 50) if figure.control == "wipe" else (len(figure.views) - 1, len(figure.views) - 1)
    labels = "".join(f"<span>{escaped(view.label)}</span>" for view in figure.views)
    return (
        f'<div class="views {figure.control}"><div class="stack">{pictures}</div>'
        f'<input type="range" min="0" max="{end}" value="{start}" step="1" aria-label="{escaped(figure.title)}">'
        f'<div class="labels">{labels}</div></div>'
    )


def _curves(path: Path) -> str:
    rows = journal.rows(path)
    parts = []
    for stage in dict.fromkeys(str(row["stage"]) for row in rows):
        members = [row for row in rows if str(row["stage"]) == stage and "step" in row]
        keys = list(dict.fromkeys(key for row in members for key, value in row.items() if _is_loss(key, value)))
        apart: list[str] = [key for key in ("loss_base", "loss_detail") if key in keys]
        others = [key for key in keys if key != "loss" and key not in apart]
        panels: list[list[str]] = [
            ["loss"] if "loss" in keys else [],
            apart,
            *(others[i : i + 4] for i in range(0, len(others), 4)),
        ]
        figures = [_curve_figure(stage, members, panel) for panel in panels if panel]
        if figures:
            rates = [float(row["images_per_second"]) for row in members if "images_per_second" in row]
            speed = f" <small>median {rate(median(rates))} images/s</small>" if rates else ""
            parts.append(f"<section><h3>{escaped(stage)}{speed}</h3>")
            parts.append(f'<div class="curves">{"".join(figures)}</div></section>')
    if not parts:
        return ""
    note = '<p class="soft">Faint: as logged. Solid: an exponential average over 2% of the curve.</p>'
    return "\n".join(["<h2>Training</h2>", note, *parts])


def _is_loss(key: str, value: object) -> bool:
    return (key == "loss" or key.startswith("loss_")) and isinstance(value, int | float) and math.isfinite(value)


def _curve_figure(stage: str, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    title = keys[0] if len(keys) == 1 else " and ".join([", ".join(keys[:-1]), keys[-1]])
    light, dark = (flat_png(loss_curves(rows, keys, title, is_dark)) for is_dark in (False, True))
    return f"<figure>{embedded_image(light, f'{stage}: {title} over steps', 'a loss curve', dark)}</figure>"


def _recipe(path: Path) -> str:
    if not path.is_file():
        return ""
    return f"<h2>Recipe</h2>\n<pre>{escaped(path.read_text(encoding='utf-8').strip())}</pre>"


def _footer(run: _About) -> str:
    found: dict[str, object] = {key: value for key, value in run.hardware.items() if value is not None}
    order = [key for key in _HARDWARE if key in found] + [key for key in found if key not in _HARDWARE]
    lines = {_HARDWARE.get(key, key): plain(found[key]) for key in order}
    return f"</main>\n<footer>{definitions(lines)}</footer>"
