"""Owner of run.json: which stages of a run are done, with which inputs, in what time; and where weights came from."""

import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from davae._version import __version__
from davae.core.state import write_json
from davae.data.hold_out import Rule
from davae.evaluate.hardware import hardware


class Record:
    """The run.json of one run. Every change is written to a temporary name and renamed.

    Args:
        path: of the file; it need not exist yet.
        name: of the run.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def stage(self, stage: str) -> dict[str, Any] | None:
        """Inputs, seconds and date of a finished stage; None where it never finished."""
        return self._read()["stages"].get(stage)

    @property
    def held_out_by(self) -> Rule:
        """Rule by which test images are held out: a run that was begun under the old one goes on with it."""
        if not self.path.exists() and not self.path.with_name("recipe.yaml").exists():
            return "id"
        rule: Rule = self._read().get("held_out_by", "position")
        return rule

    def begin(self, held_out_by: Rule) -> None:
        """The run begins, or goes on, with this rule for its test images."""
        state = self._read()
        if state.get("held_out_by") != held_out_by:
            self._write({**state, "held_out_by": held_out_by})

    def pause(self, stage: str, seconds: float) -> None:
        """A stage stopped before its end after `seconds`; they count when it is finished."""
        state = self._read()
        partial = state.setdefault("unfinished", {})
        partial[stage] = round(partial.get(stage, 0.0) + seconds, 1)
        self._write(state)

    def finish(self, stage: str, inputs: Mapping[str, Any], seconds: float) -> None:
        """A stage is done."""
        state = self._read()
        before = state.setdefault("unfinished", {}).pop(stage, 0.0)
        state["stages"][stage] = {
            "inputs": inputs,
            "seconds": round(before + seconds, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._write(state)

    def renew(self, stage: str, inputs: Mapping[str, Any]) -> None:
        """A finished stage depends on the same things, which are written in another way."""
        state = self._read()
        state["stages"][stage]["inputs"] = inputs
        self._write(state)

    def note_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Images that could not be used, each with its reason."""
        state, rows = self._read(), [list(row) for row in skipped]
        if state.get("skipped_images", []) != rows:
            self._write({**state, "skipped_images": rows})

    def _read(self) -> dict[str, Any]:
        if self.path.exists():
            return json.loads(self.path.read_text())
        return {"name": self.name, "stages": {}}

    def _write(self, state: Mapping[str, Any]) -> None:
        write_json(self.path, {**state, **versions()}, indent=1)


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
    lines = stats.read_text(encoding="utf-8").splitlines() if stats is not None and stats.exists() else []
    rows = [json.loads(line) for line in lines]
    last = {row["stage"]: row for row in rows if row["stage"] in stages}
    content = {
        **versions(),
        "date": time.strftime("%Y-%m-%d"),
        "last": last,
        "hardware": hardware(),
        "recipe": recipe,
    }
    write_json(folder / "provenance.json", content, indent=1)
