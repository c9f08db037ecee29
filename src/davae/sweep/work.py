"""One worker: takes runs of a sweep that nobody works on until all are done. Any number work on one folder."""

import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from davae.core.lock import LockedError, locked
from davae.core.observer import Observer
from davae.core.state import found_json, write_json
from davae.run.checks import check
from davae.run.execute import Stage, execute, planned
from davae.run.run import Run
from davae.run.writer import LOCK
from davae.sweep.plan import PlannedRun, Sweep
from davae.sweep.sharing import Sharing, Waiting
from davae.train.interrupt import Interrupted

FAILURE = "failed.json"
"""In the folder of a run that failed: the sentence."""
PAUSE = 2.0
"""Seconds between two looks at runs that others work on."""
_SENTENCES = (ValueError, OSError, ArithmeticError, SafetensorError)
"""Errors whose text is for people; of others the kind is told too."""


@dataclass(frozen=True)
class Failure:
    """Why a run failed, and when, seconds since 1970."""

    sentence: str
    trace: str
    time: float


def check_runs(sweep: Sweep, root: Path, observer: Observer) -> None:
    """Refuse what any run would be refused for without data, before the first one trains.

    Raises:
        ValueError: a run would be refused; the text says which.
    """
    refuse_several_processes()
    for cell in sweep.cells:
        try:
            check(Run(cell.of_seed(sweep.seeds[0]).recipe, root, observer))
        except (ValueError, OSError) as error:
            raise ValueError(f"Cell {cell.name!r} cannot be run: {error}") from error


def refuse_several_processes() -> None:
    """Refuse a launcher's processes: they would work on one run together.

    Raises:
        ValueError: there are several.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(
            f"A sweep is worked on by commands of one process; got {count} of a launcher. Start 'davae sweep' "
            f"several times on the same folder, each with its own device (CUDA_VISIBLE_DEVICES)."
        )


class Worker:
    """Takes runs from a sweep's folder.

    Args:
        sweep: what is to be done.
        root: its folder.
        stages: of a run, in order.
        observer: who watches.
        overwrite: whether trainings may be started anew whose settings changed.
        pause: seconds between two looks at runs that others work on.
    """

    def __init__(
        self,
        sweep: Sweep,
        root: Path,
        stages: Sequence[Stage],
        observer: Observer,
        overwrite: bool = False,
        pause: float = PAUSE,
    ) -> None:
        self.sweep, self.root, self.observer = sweep, root, observer
        self.overwrite, self.pause = overwrite, pause
        self._since = time.time()
        sharing = Sharing(root, {run.name: run.recipe for run in sweep.runs}, self._will_run)
        self._stages = [sharing.shared(stage) for stage in stages]
        self._voices: dict[str, _Voice] = {}

    def work(self) -> None:
        """Until every run is done or has failed, by this worker or by others.

        Raises:
            Interrupted: a signal came during a training, whose state was saved.
        """
        waiting = self.sweep.runs
        while waiting:
            left = [run for run in waiting if not self._is_over(run)]
            if len(left) == len(waiting):
                time.sleep(self.pause)
            waiting = left

    def _is_over(self, planned_run: PlannedRun) -> bool:
        """Bring a run to its end, unless somebody else does."""
        if self._failed(planned_run.name):
            return True
        voice = self._voices.setdefault(planned_run.name, _Voice(self.observer, planned_run.name))
        run = Run(planned_run.recipe, self.root, voice, self.overwrite)
        try:
            execute(run, planned(self._stages, run.recipe))
        except (Waiting, LockedError) as error:
            voice.say(f"waits: {error}")
            return False
        except Interrupted:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one run fails of, the others go on
            _note(run, error)
            return True
        (run.folder.root / FAILURE).unlink(missing_ok=True)
        voice.say("done")
        return True

    def _failed(self, name: str) -> bool:
        """Whether a run failed since this worker began: who starts the sweep again tries it again."""
        found = failure(self.root / name)
        return found is not None and found.time >= self._since

    def _will_run(self, name: str) -> bool:
        """Whether some worker will bring a run to its end."""
        return not self._failed(name)


class _Voice:
    """An observer of one run of several: says whose it speaks of, and nothing twice.

    Args:
        observer: who listens.
        name: of the run.
    """

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer, self._name, self._said = observer, name, set[str]()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""
        self._observer.begin(f"{self._name}, {stage}", total, done)

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""
        self._observer.advance(done, values)

    def end(self) -> None:
        """See `Observer`."""
        self._observer.end()

    def say(self, message: str) -> None:
        """See `Observer`."""
        if message not in self._said:
            self._said.add(message)
            self._observer.say(f"{self._name}: {message}")


def _note(run: Run, error: Exception) -> None:
    sentence = str(error) if isinstance(error, _SENTENCES) else f"{type(error).__name__}: {error}"
    run.observer.say(f"failed: {sentence}")
    trace = "".join(traceback.format_exception(error))
    write_json(run.folder.root / FAILURE, {"sentence": sentence, "trace": trace, "time": time.time()}, indent=1)


def failure(folder: Path) -> Failure | None:
    """Why the run in a folder failed; None where it did not."""
    return found_json(folder / FAILURE, Failure)


def is_at_work(folder: Path) -> bool:
    """Whether somebody works on the run in a folder now."""
    if not folder.is_dir():
        return False
    try:
        with locked(folder / LOCK, "It"):
            return False
    except LockedError:
        return True
