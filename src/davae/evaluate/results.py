"""Owner of results.json: measurements with their protocol, figures and claims of a run, and the machine's name.

Lists keep their order, because it is the order in which a reader sees them.
"""

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

_FORMAT = 1


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
class Figure:
    """An image of the run; `path` is relative to the folder of results.json."""

    title: str
    caption: str
    path: str


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
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read what `save` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.get("format") if isinstance(data, dict) else None
        if found != _FORMAT:
            raise ValueError(
                f"{path} is not a results file of this version; got format {found!r}, expected {_FORMAT}. "
                f"Run 'davae evaluate RECIPE' again."
            )
        return cls(
            run=data["run"],
            measurements=[Measurement(**item) for item in data["measurements"]],
            figures=[Figure(**item) for item in data["figures"]],
            claims=[Claim(**item) for item in data["claims"]],
        )

    def _refuse_duplicates(self) -> None:
        seen: set[tuple[str, str, str]] = set()
        for item in self.measurements:
            cell = (item.group, item.row, item.column)
            if cell in seen:
                raise ValueError(f"Measured twice: '{' / '.join(cell)}'. Give the second one its own row or column.")
            seen.add(cell)


def hardware() -> dict[str, str | int | float | None]:
    """The machine and the versions that numbers depend on; `memory_gb` is 2^30 bytes, None where unknown."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gb": _memory_gb(),
        "gpu": _gpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if os.name != "posix":  # os.sysconf exists on POSIX alone
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _gpu_name() -> str | None:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        name = torch.cuda.get_device_name(0)
        return name if count == 1 else f"{count} x {name}"
    return "Apple GPU (MPS)" if torch.backends.mps.is_available() else None


def _refuse_non_finite(value: Any, where: str) -> None:
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
