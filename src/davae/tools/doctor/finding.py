"""What `davae doctor` finds, and how it says it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "failed", "left out"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Args:
        level: "failed" fails the command; "left out" needs something that is not there.
        found: what was found.
        advice: what to do; "" where nothing is to be done.
        values: the numbers behind it, as JSON values.
        check: name of the check, filled in by `examine`.
    """

    level: Level
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    check: str = ""

    def __str__(self) -> str:
        return f"{self.level:>8}  {self.check}: {' '.join(f'{self.found} {self.advice}'.split())}"
