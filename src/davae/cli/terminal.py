"""What people see of a command at work: bars on a terminal, plain lines in a log."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

NAMES = {
    "loss_base": "base",
    "loss_detail": "detail",
    "l1": "l1",
    "pyramid": "pyramid",
    "spectrum": "spectrum",
    "perceptual": "perceptual",
    "psnr": "psnr",
    "align": "align",
    "generative": "generative",
    "vision": "vision",
    "adversarial": "adversarial",
}
"""Values of a journal's row that are shown, in this order, and what they are called."""
QUIET = 30.0
"""Seconds after which a log gets a line of work that reports no values."""


def watch() -> "Watch":
    """Bars where a person looks at a terminal, plain lines where standard error goes to a file or a pipe."""
    console = Console(stderr=True)
    return Bars(console) if console.is_interactive else Lines(console)


class Watch(ABC):
    """An observer for the command line. Of several processes those that stay silent leave the terminal alone.

    Args:
        console: on standard error.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing that was written waits in a buffer."""
        self._console.file.flush()

    @abstractmethod
    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""

    @abstractmethod
    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""

    @abstractmethod
    def end(self) -> None:
        """See `Observer`."""

    def say(self, message: str) -> None:
        """See `Observer`."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """A table for people, on standard output."""
        Console().print(table)


class Bars(Watch):
    """A bar a stage. In a narrow window the values are cut first, then the bar; count and time left stay."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=22)),
            BarColumn(bar_width=None, table_column=Column(min_width=6, max_width=40, ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            _ValuesColumn(),
            console=console,
            refresh_per_second=2,
            expand=True,
        )
        self._task = TaskID(0)

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""
        self._progress.start()
        self._task = self._progress.add_task(stage, total=total, completed=done, values="")

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""
        self._progress.update(self._task, completed=done)
        if values:
            self._progress.update(self._task, values=summary(values))

    def end(self) -> None:
        """See `Observer`."""
        self._progress.refresh()

    def say(self, message: str) -> None:
        """See `Observer`."""
        self._progress.start()
        super().say(message)


class Lines(Watch):
    """A line whenever there are values to report, and of work without values every half minute."""

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""
        self._stage, self._total, self._first = stage, total, done
        self._started = self._written = time.monotonic()
        self._line(done, "goes on" if done else "begins")

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""
        now = time.monotonic()
        if values or now - self._written >= QUIET:
            self._written = now
            self._line(done, *([summary(values)] if values else []), f"{self._left(done, now)} left")

    def end(self) -> None:
        """See `Observer`."""
        self.say(f"{self._stage}  ended after {duration(time.monotonic() - self._started)}")

    def _line(self, done: int, *facts: str) -> None:
        self.say("  ".join((self._stage, f"{done:,}/{self._total:,}", *facts)))

    def _left(self, done: int, now: float) -> str:
        """At the mean rate since the stage began here."""
        return duration((now - self._started) * (self._total - done) / max(done - self._first, 1))


class _ValuesColumn(ProgressColumn):
    """The latest values, as many of them as there is room for."""

    def __init__(self) -> None:
        super().__init__(table_column=Column(ratio=2))

    def render(self, task: Task) -> Text:
        """On one line."""
        return Text(task.fields["values"], no_wrap=True, overflow="ellipsis")


def summary(values: Mapping[str, float]) -> str:
    """Values for people, for example "base 0.39  detail 0.71  52.9 images/s"."""
    shown = [f"{name} {values[key]:.3g}" for key, name in NAMES.items() if key in values]
    if "images_per_second" in values:
        shown.append(f"{values['images_per_second']:.3g} images/s")
    return "  ".join(shown)


def duration(seconds: float) -> str:
    """For people, for example "0:05" or "1:00:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
