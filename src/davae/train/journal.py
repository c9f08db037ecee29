"""`stats.jsonl`: one JSON object per log step, and the observer that shows people what happens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Observer(Protocol):
    """Shows progress to a person. The library's default shows nothing; the command line draws bars."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """A stage of `total` units starts, `done` of them already finished."""

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """`done` units are finished; `values` are the latest numbers."""

    def end(self) -> None:
        """The stage is over."""

    def say(self, message: str) -> None:
        """One line for the person."""


class Silent:
    """An observer that shows nothing."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """Show nothing."""

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""


class Journal:
    """Appends rows of one stage to a run's `stats.jsonl`.

    Args:
        path: the file; None keeps nothing.
        stage: written into every row.
    """

    def __init__(self, path: Path | None, stage: str) -> None:
        self.path, self.stage = path, stage

    def rewind(self, step: int) -> None:
        """Drop this stage's rows beyond `step`: a resumed run writes them again."""
        if self.path is None or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            row = _parse(line)
            if row is not None and (row["stage"] != self.stage or row["step"] <= step):
                kept.append(line)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        temporary.rename(self.path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # a kill can cut the last line
        return None
