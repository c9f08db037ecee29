"""What several runs of a sweep need is made once: who needs it first makes it, and the others take it.

What a stage makes follows from the inputs that it declares. Runs whose inputs are the same share its output, by links
to the same files; a run is whole without the others afterwards.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from davae.core.files import link_folder, text_hash
from davae.core.lock import LockedError, locked
from davae.core.state import found_json, write_json
from davae.recipe import Recipe
from davae.run.execute import Stage
from davae.run.run import Run
from davae.train.journal import Journal, rows

FOLDER = "shared"
"""In a sweep's folder: which run makes what."""


class Waiting(Exception):
    """Another run makes what this one needs; it can go on later."""


@dataclass(frozen=True)
class _Maker:
    """Which run makes an output, or made it."""

    run: str


class Sharing:
    """Stages whose outputs the runs of a sweep share.

    Args:
        root: folder of the sweep.
        recipes: of its runs, by name.
        will_run: whether a run that has not finished will still be brought to its end by somebody.
    """

    def __init__(self, root: Path, recipes: Mapping[str, Recipe], will_run: Callable[[str], bool]) -> None:
        self.root, self.recipes, self.will_run = root, recipes, will_run

    def shared(self, stage: Stage) -> Stage:
        """The stage as the runs of a sweep execute it: made, or taken from the run that made it."""
        return replace(stage, run=partial(self._bring, stage)) if stage.portable else stage

    def _bring(self, stage: Stage, run: Run) -> None:
        """
        Raises:
            Waiting: it is being made, or is begun and will be.
        """
        inputs = json.loads(json.dumps(stage.inputs(run)))
        claim = self.root / FOLDER / f"{stage.name}-{text_hash(json.dumps(inputs, sort_keys=True))}.json"
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(claim.with_suffix(".lock"), f"What {stage.name} leaves"))
            except LockedError as error:
                raise Waiting(f"{stage.name} is being made by another run") from error
            maker = self._maker(claim, run)
            if maker is not None and _made(maker, stage) == inputs and stage.stands(stage.output(maker)):
                _take(stage, run, maker)
                return
            if maker is not None and _made(maker, stage) is None and self.will_run(maker.recipe.name):
                raise Waiting(f"{stage.name} is begun by {maker.recipe.name}")  # its checkpoints are there
            write_json(claim, {"run": run.recipe.name})
            stage.run(run)

    def _maker(self, claim: Path, run: Run) -> Run | None:
        """The other run that claims an output."""
        found = found_json(claim, _Maker)
        if found is None or found.run == run.recipe.name or found.run not in self.recipes:
            return None
        return Run(self.recipes[found.run], self.root)


def _made(run: Run, stage: Stage) -> object:
    """Inputs with which a run finished a stage; None where it did not."""
    done = run.record.stage(stage.name)
    return None if done is None else done["inputs"]


def _take(stage: Stage, run: Run, maker: Run) -> None:
    """The output of a stage, and its rows of stats.jsonl."""
    run.observer.say(f"{stage.name}: the same as that of {maker.recipe.name}, shared")
    journal = Journal(run.folder.stats, stage.name)
    journal.rewind(-1)
    for row in rows(maker.folder.stats):
        if row["stage"] == stage.name:
            journal.log(row["step"], {key: value for key, value in row.items() if key not in ("stage", "step")})
    link_folder(stage.output(maker), stage.output(run))
