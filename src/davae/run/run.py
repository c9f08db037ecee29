"""A run: a recipe, and what its stages share."""

from functools import cached_property
from pathlib import Path

from accelerate import Accelerator

from davae.core.observer import Observer, Silent
from davae.data.cache_files import Part
from davae.evaluate.processes import Processes
from davae.recipe import Recipe
from davae.run.accelerator import make_accelerator, processes_of
from davae.run.data import RunData
from davae.run.origins import Origins
from davae.run.record import Record


class Run(Origins):
    """One run on disk.

    Args:
        recipe: what to do.
        runs_dir: folder of all runs; this one lives in `runs_dir / recipe.name`.
        observer: who watches.
        overwrite: whether training stages may be started anew where their settings changed.
    """

    def __init__(
        self, recipe: Recipe, runs_dir: Path = Path("runs"), observer: Observer | None = None, overwrite: bool = False
    ) -> None:
        super().__init__(recipe, runs_dir)
        self.overwrite = overwrite
        self.observer: Observer = observer or Silent()
        self.record = Record(self.folder.record, recipe.name)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Placement and distribution."""
        return make_accelerator(self.recipe.device)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once."""
        main: bool = self.accelerator.is_main_process
        return main

    @property
    def part(self) -> Part:
        """What this process encodes of a cache."""
        accelerator = self.accelerator
        return Part(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)

    @property
    def processes(self) -> Processes:
        """What this process measures of what all do."""
        return processes_of(self.accelerator)

    @cached_property
    def data(self) -> RunData:
        """Its images."""
        return RunData(self, self.record.held_out_by, self.observer.say)
