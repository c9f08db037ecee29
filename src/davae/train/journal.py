"""`stats.jsonl`: one JSON object per log step, and the means that make up a row."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from davae.core.files import write_text


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
        kept = [row for row in rows(self.path) if row["stage"] != self.stage or row["step"] <= step]
        write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in kept))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": self.stage, "step": step, **values}) + "\n")


def rows(path: Path | None) -> list[dict[str, Any]]:
    """The rows of a journal; none where there is no file. Damaged lines, such as a kill leaves, are passed over."""
    if path is None or not path.is_file():
        return []
    parsed = map(_row, path.read_bytes().split(b"\n"))
    return [row for row in parsed if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no UTF-8, nested without end
        return None
    if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or not isinstance(row.get("step"), int):
        return None
    return row if all(isinstance(value, int | float) for key, value in row.items() if key != "stage") else None


class Window:
    """Means since the last row, kept on the device until asked for, and the rate of images.

    Args:
        batch_size: images a step.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._begin()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in the scalars of one step; a name may be missing in some steps."""
        self._steps += 1
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()
            self._counts[key] += 1

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        """The row: mean of each value over its steps and over processes, and "images_per_second". Begins anew."""
        rate = self._steps * self.batch_size / max(time.monotonic() - self._started, 1e-9)
        means = {key: total.float() / self._counts[key] for key, total in self._sums.items()}
        row: dict[str, float] = {}
        if means:
            numbers = accelerator.reduce(torch.stack(list(means.values())), "mean").tolist()
            row = dict(zip(means, numbers, strict=True))
        self._begin()
        return row | {"images_per_second": rate}

    def _begin(self) -> None:
        self._steps, self._started = 0, time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
