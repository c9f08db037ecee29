"""A sweep from its plan to its page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from davae.core.files import write_text
from davae.core.observer import Observer, Silent
from davae.core.state import write_json
from davae.report.sweep.page import write_page
from davae.report.sweep.table import SweptRun, Table, as_json, as_markdown, tabulate
from davae.run.execute import planned
from davae.run.run import Run
from davae.stages import STAGES
from davae.sweep.measures import MEASURES, results_of
from davae.sweep.plan import PlannedRun, Sweep, save_plan, setting
from davae.sweep.work import PAUSE, Worker, check_runs, failure, is_at_work

PAGE, TABLE, MARKDOWN = "sweep.html", "table.json", "table.md"
SWEPT = (*STAGES, *MEASURES)
"""The stages of a run, and what a sweep measures beside them."""


def run_sweep(
    sweep: Sweep,
    runs_dir: str | Path = "runs",
    observer: Observer | None = None,
    overwrite: bool = False,
    pause: float = PAUSE,
) -> Table:
    """Bring every run of a sweep to its end, or see that others do, and write its page; `davae sweep` in Python.

    Call it again after any stop, or several times at once on one folder.

    Args:
        sweep: see `load_sweep`.
        runs_dir: the sweep lives in `runs_dir / sweep.name`, its runs in there.
        observer: hears of progress; None shows nothing.
        overwrite: whether finished trainings may be started anew where their settings changed.
        pause: seconds between two looks at runs that other workers have.

    Returns:
        What came out, runs that failed among it.

    Raises:
        ValueError: a run would be refused; nothing was begun.
        Interrupted: a signal came during a training; the state was saved, call again to go on.
    """
    root, observer = Path(runs_dir) / sweep.name, observer or Silent()
    check_runs(sweep, root, observer)
    save_plan(sweep, root)
    Worker(sweep, root, SWEPT, observer, overwrite, pause).work()
    return report(sweep, root)


def report(sweep: Sweep, root: Path) -> Table:
    """Write page and tables of what there is of a sweep now."""
    table = tabulate(swept_runs(sweep, root), sweep.metrics)
    write_json(root / TABLE, {"name": sweep.name, **as_json(table)}, indent=1)
    write_text(root / MARKDOWN, as_markdown(table))
    changes = {cell.name: {key: setting(value) for key, value in cell.changes.items()} for cell in sweep.cells}
    write_page(root / PAGE, table, sweep.title or sweep.name, sweep.about, changes, sweep.curves)
    return table


def swept_runs(sweep: Sweep, root: Path) -> list[SweptRun]:
    """How far every run is, and what was measured of those that are done."""
    recorded = {run.name: _recorded(run, root) for run in sweep.runs}
    spent: dict[str, float] = {}
    for stages in recorded.values():
        for done in stages.values():
            spent[done.identity] = max(done.seconds, spent.get(done.identity, 0.0))  # who took it spent nothing
    return [
        _swept(run, root, {stage: spent[done.identity] for stage, done in recorded[run.name].items()})
        for run in sweep.runs
    ]


@dataclass(frozen=True)
class _Done:
    """A stage that a run finished; equal identities are one result."""

    identity: str
    seconds: float


def _recorded(planned_run: PlannedRun, root: Path) -> dict[str, _Done]:
    run = Run(planned_run.recipe, root)
    found = {stage.name: run.record.stage(stage.name) for stage in planned(SWEPT, run.recipe)}
    return {
        name: _Done(json.dumps([name, entry["inputs"]], sort_keys=True), entry["seconds"])
        for name, entry in found.items()
        if entry is not None
    }


def _swept(planned_run: PlannedRun, root: Path, seconds: Mapping[str, float]) -> SweptRun:
    folder, stages = root / planned_run.name, planned(SWEPT, planned_run.recipe)
    waits = SweptRun(planned_run.cell.name, planned_run.seed, folder, "waits", seconds=seconds)
    failed = failure(folder)
    if failed is None and len(seconds) == len(stages):
        return replace(waits, state="done", measurements=results_of(folder))
    if is_at_work(folder):
        return replace(waits, state="at work")
    return waits if failed is None else replace(waits, state="failed", sentence=failed.sentence)
