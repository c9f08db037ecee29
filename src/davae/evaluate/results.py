"""Owner of results.json: measurements with their protocol, figures and claims of a run.

Lists keep their order, because it is the order in which a reader sees them.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from davae.core.state import StateError, parse_json, read_json, write_json

NOTE = "note"
"""Key of a protocol under which a measurement has a sentence for its reader."""
INTERVAL = "interval_95"
"""Key of a protocol under which a measurement has its interval, a pair of numbers."""
_FORMAT = 1
Control = Literal["", "wipe", "dial"]
"""How a reader changes between the pictures of a figure."""


@dataclass(frozen=True)
class Measurement:
    """One number and how it came about.

    Args:
        group: the table it belongs to, for example "Reconstruction".
        row: what was measured, for example "full latent".
        column: the metric, for example "PSNR".
        value: a finite number.
        unit: "dB", "images/s"; empty for a pure number.
        better: "higher" or "lower"; empty where neither is better.
        protocol: everything needed to measure it again: sample count, seed, resize, extractor.
    """

    group: str
    row: str
    column: str
    value: float
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"{self.group} / {self.row} / {self.column}"
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ValueError(f"Measurement '{where}' needs a number; got {self.value!r}. Pass float(value).")
        if self.better not in ("higher", "lower", ""):
            raise ValueError(f"Measurement '{where}': better is {self.better!r}, allowed 'higher', 'lower' and ''.")
        _refuse_non_finite(self.value, f"measurement '{where}'")
        _refuse_non_finite(self.protocol, f"protocol of '{where}'")


@dataclass(frozen=True)
class View:
    """One of several pictures of a figure."""

    label: str
    path: str


@dataclass(frozen=True)
class Figure:
    """A picture of the run, or several of one size between which a reader changes.

    Args:
        title: a few words.
        caption: what is seen.
        path: of the picture, relative to the folder of results.json; of the last one where there are several.
        views: each of several pictures, in their order.
        control: how a reader changes between them: "wipe" uncovers the second of two, "dial" shows one.
    """

    title: str
    caption: str
    path: str
    views: list[View] = field(default_factory=list)
    control: Control = ""


@dataclass(frozen=True)
class Claim:
    """A sentence that the run was to show, whether it did, and the numbers that decide it."""

    text: str
    holds: bool
    detail: str = ""


@dataclass
class Results:
    """Everything that a run found out.

    Args:
        run: what a reader needs to know of the run. The report shows the keys name (or title), summary and
            hardware, and stages (name -> {"seconds": s}); the order of stages survives in run.json alone.
        measurements: the numbers, in reading order.
        figures: the images, in reading order.
        claims: what was to be shown, in reading order.
    """

    run: dict[str, Any] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write JSON with sorted keys; a reader sees the old file or the new one, never half of one."""
        self._refuse_duplicates()
        _refuse_non_finite(self.run, "run")
        write_json(path, {"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: nothing is there.
            StateError: it is damaged, or of another version.
        """
        remedy = "Run 'davae evaluate RECIPE' again."
        data = read_json(path, dict[str, Any], remedy)
        if data.get("format") != _FORMAT:
            raise StateError(
                f"{path} is not a results file of this version; got format {data.get('format')!r}, expected "
                f"{_FORMAT}. {remedy}"
            )
        return parse_json(path, data, cls, remedy)

    @classmethod
    def stand(cls, path: Path) -> bool:
        """Whether whole results are there."""
        try:
            cls.load(path)
        except (StateError, FileNotFoundError):
            return False
        return True

    def _refuse_duplicates(self) -> None:
        seen: set[tuple[str, str, str]] = set()
        for item in self.measurements:
            cell = (item.group, item.row, item.column)
            if cell in seen:
                raise ValueError(f"Measured twice: '{' / '.join(cell)}'. Give the second one its own row or column.")
            seen.add(cell)


def _refuse_non_finite(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"Results hold finite numbers only; got {value} in {where}. "
            f"Find out why it is not finite, or leave the measurement out."
        )
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}, {key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}, {index}")
