"""Who watches: the interface through which long work shows its progress to a person."""

from collections.abc import Mapping
from typing import Protocol


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
