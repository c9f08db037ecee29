"""Which stages a recipe has, which of them run and which are skipped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from davae.core.files import write_text
from davae.core.observer import Silent
from davae.recipe import Recipe, dump_recipe
from davae.run.checks import check, check_captions, warn_of_judged_training_images
from davae.run.run import Run
from davae.run.writer import only_writer
from davae.train.checkpoint import differences
from davae.train.interrupt import terminable


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run."""

    name: str
    verb: str
    """The command that runs it."""
    section: str
    """The recipe section it needs; a dot leads into a section."""
    inputs: Callable[[Run], Mapping[str, Any]]
    """What its result depends on, as JSON values; the stage is skipped while these stand."""
    run: Callable[[Run], None]
    output: Callable[[Run], Path]
    """What it leaves in the run's folder, the last of it to be written."""
    stands: Callable[[Path], bool] = Path.exists
    """Whether the output is there and whole."""
    trains: bool = False
    """Whether it makes weights, which are never thrown away without being asked."""
    portable: bool = False
    """Whether its output is a folder that serves any other run with the same inputs as it is."""
    outlives: Sequence[str] = ()
    """Inputs that may change after it: its result stands, and the change is said."""


def planned(stages: Sequence[Stage], recipe: Recipe, verb: str | None = None) -> list[Stage]:
    """The stages of a recipe in order, or those of one verb.

    Raises:
        ValueError: the recipe lacks the section that the verb needs.
    """
    present = [stage for stage in stages if _has(recipe, stage.section)]
    if verb is None:
        return present
    chosen = [stage for stage in present if stage.verb == verb]
    if not chosen:
        section = next(stage.section for stage in stages if stage.verb == verb).partition(".")[0]
        raise ValueError(f"'{verb}' needs the section {section}, which recipe {recipe.name} lacks.")
    return chosen


def is_done(run: Run, stage: Stage) -> bool:
    """Whether the stage's output stands and its inputs did not change."""
    return stage.stands(stage.output(run)) and not _compared(run, stage).changes


def execute(run: Run, stages: Sequence[Stage]) -> None:
    """Run stages in order, passing over those that are done.

    Raises:
        LockedError: another process works on this run.
        ValueError: a finished training would be replaced because its settings changed, and `overwrite` is off.
    """
    if not run.is_main:
        run.observer = Silent()  # one process talks
    check(run)
    if any(stage.trains for stage in stages):
        check_captions(run)
    with only_writer(run.folder.root, f"Run {run.recipe.name}", run.is_main):
        warn_of_judged_training_images(run)
        for stage in stages:
            _bring_up_to_date(run, stage)


def _bring_up_to_date(run: Run, stage: Stage) -> None:
    compared = _compared(run, stage)
    stands = stage.stands(stage.output(run))
    if stands and not compared.changes:
        run.observer.say(f"{stage.name}: done before, skipped")
        _keep(run, stage, compared)
        return
    if stands and stage.trains and run.record.stage(stage.name) is not None and not run.overwrite:
        raise ValueError(
            f"Run {run.recipe.name} has a finished {stage.name} with other settings: "
            f"{'; '.join(compared.changes[:5])}. "
            f"Use the old settings, give the run another name, or pass --overwrite."
        )
    if run.is_main:
        run.record.begin(run.data.held_out_by)
        recipe = dump_recipe(run.recipe.anchored())
        write_text(run.folder.recipe, recipe)  # not before: a refused recipe is not the run's
    run.accelerator.wait_for_everyone()
    _execute(run, stage)


def _execute(run: Run, stage: Stage) -> None:
    started = time.monotonic()
    try:
        with terminable():
            stage.run(run)
    except BaseException:
        if run.is_main:
            with suppress(OSError):  # on a full disk the first error is the one to report
                run.record.pause(stage.name, time.monotonic() - started)
        raise
    run.accelerator.wait_for_everyone()
    if run.is_main:
        if run.data.skipped is not None:
            run.record.note_skipped(run.data.skipped)
        run.record.finish(stage.name, _inputs(run, stage), time.monotonic() - started)
    run.accelerator.wait_for_everyone()


def _has(recipe: Recipe, section: str) -> bool:
    value: Any = recipe
    for part in section.split("."):
        value = None if value is None else getattr(value, part)
    return value is not None


def _inputs(run: Run, stage: Stage) -> dict[str, Any]:
    inputs: dict[str, Any] = json.loads(json.dumps(stage.inputs(run)))
    return inputs


@dataclass(frozen=True)
class _Compared:
    """A finished stage's inputs then and now; `changes` make another result, `outlived` ones do not."""

    changes: list[str]
    outlived: Sequence[str] = ()
    now: Mapping[str, Any] = field(default_factory=dict)
    """As they are now, but for those that the stage outlived."""
    is_told_otherwise: bool = False
    """Whether they are the same as far as can be told, and written in another way."""


def _compared(run: Run, stage: Stage) -> _Compared:
    entry = run.record.stage(stage.name)
    if entry is None:
        return _Compared(["never finished"])
    before, now = entry["inputs"], _inputs(run, stage)
    outlived = [name for name in stage.outlives if name in before and before[name] != now[name]]
    seen = {name: before[name] for name in stage.outlives if name in before}
    now = {name: value for name, value in now.items() if name not in stage.outlives} | seen
    changes = differences(before, now)
    return _Compared(changes, outlived, now, is_told_otherwise=not changes and before != now)


def _keep(run: Run, stage: Stage, compared: _Compared) -> None:
    """Say what a result that stands does not know; from now on contents tell its images apart."""
    for name in compared.outlived:
        run.observer.say(f"{stage.name}: {name} changed since this training")
    if compared.is_told_otherwise:
        run.observer.say(
            f"{stage.name}: was made when images were told apart by the times of their files; there are as many, so "
            f"it stands. From now on their contents count."
        )
        if run.is_main:
            run.record.renew(stage.name, compared.now)
