"""Owner of run.json: which stages of a run are done, with which inputs, in what time; and where weights came from."""

import logging
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from davae._version import __version__
from davae.core.state import StateError, found_json, read_json, write_json
from davae.data.hold_out import Rule
from davae.evaluate.hardware import hardware
from davae.train.journal import rows

logger = logging.getLogger(__name__)


@dataclass
class _Done:
    """A finished stage."""

    inputs: dict[str, Any]
    seconds: float = 0.0
    finished: str = ""


@dataclass
class _State:
    """What run.json holds, beside what wrote it."""

    name: str
    stages: dict[str, _Done] = field(default_factory=dict)
    unfinished: dict[str, float] = field(default_factory=dict)
    skipped_images: list[list[str]] = field(default_factory=list)
    held_out_by: Rule | None = None


class Record:
    """The run.json of one run, and a copy of it, which takes its place where it is damaged.

    Args:
        path: of the file; it need not exist yet.
        name: of the run.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._copy = path.with_name(f"{path.name}.bak")

    def stage(self, stage: str) -> dict[str, Any] | None:
        """Inputs, seconds and date of a finished stage; None where it never finished."""
        done = self._read().stages.get(stage)
        return None if done is None else asdict(done)

    @property
    def held_out_by(self) -> Rule:
        """Rule by which test images are held out: a run that was begun under the old one goes on with it."""
        if not self.path.exists() and not self.path.with_name("recipe.yaml").exists():
            return "id"
        return self._read().held_out_by or "position"

    def begin(self, held_out_by: Rule) -> None:
        """The run begins, or goes on, with this rule for its test images."""
        state = self._read()
        if state.held_out_by != held_out_by:
            state.held_out_by = held_out_by
            self._write(state)

    def pause(self, stage: str, seconds: float) -> None:
        """A stage stopped before its end after `seconds`; they count when it is finished."""
        state = self._read()
        state.unfinished[stage] = round(state.unfinished.get(stage, 0.0) + seconds, 1)
        self._write(state)

    def finish(self, stage: str, inputs: Mapping[str, Any], seconds: float) -> None:
        """A stage is done."""
        state = self._read()
        before = state.unfinished.pop(stage, 0.0)
        date = time.strftime("%Y-%m-%d %H:%M:%S")
        state.stages[stage] = _Done(dict(inputs), round(before + seconds, 1), date)
        self._write(state)

    def renew(self, stage: str, inputs: Mapping[str, Any]) -> None:
        """A finished stage depends on the same things, which are written in another way."""
        state = self._read()
        state.stages[stage].inputs = dict(inputs)
        self._write(state)

    def note_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Images that could not be used, each with its reason."""
        state, found = self._read(), [list(row) for row in skipped]
        if state.skipped_images != found:
            state.skipped_images = found
            self._write(state)

    def _read(self) -> _State:
        if not self.path.exists():
            return _State(self.name)
        remedy = (
            f"It says which stages are done. Put a copy of it back. Without one, remove it, {self._copy.name} and "
            f"recipe.yaml and run the same command: trainings are taken up from their last checkpoints."
        )
        try:
            return read_json(self.path, _State, remedy)
        except StateError as error:
            copy = found_json(self._copy, _State)
            if copy is None:
                raise
            logger.warning("%s Its copy is used.", str(error).removesuffix(f" {remedy}"))
            return copy

    def _write(self, state: _State) -> None:
        content = {**asdict(state), **versions()}
        for path in (self._copy, self.path):  # one of them is whole, whatever happens
            write_json(path, content, indent=1)


def versions() -> dict[str, str]:
    """What code is running."""
    return {"davae": __version__, "git": git_revision(), "python": platform.python_version()}


def git_revision() -> str:
    """Revision of the checkout that the package runs from; "" for an installed package."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def write_provenance(folder: Path, recipe: Mapping[str, Any], stats: Path | None, stages: Sequence[str]) -> None:
    """Write provenance.json beside weights: code, recipe, last logged numbers of their trainings, hardware."""
    last = {row["stage"]: row for row in rows(stats) if row["stage"] in stages}
    content = {
        **versions(),
        "date": time.strftime("%Y-%m-%d"),
        "last": last,
        "hardware": hardware(),
        "recipe": recipe,
    }
    write_json(folder / "provenance.json", content, indent=1)
