"""What people see of a command at work: progress bars and lines, by rich."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressBars:
    """An observer that draws progress bars with rich.

    It takes hold of the terminal when it is first used: of several processes those that stay silent leave it alone.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=self._console,
            refresh_per_second=2,
        )
        self._task: Any = None
        self._is_live = False

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._progress.stop()

    def _start(self) -> None:
        self._progress.start()
        self._is_live = True

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""
        self._start()
        self._task = self._progress.add_task(stage, total=total, completed=done, values="")

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""
        self._progress.update(self._task, completed=done)
        if values:
            self._progress.update(self._task, values=_summary(values))

    def end(self) -> None:
        """See `Observer`."""
        self._progress.refresh()

    def say(self, message: str) -> None:
        """See `Observer`."""
        self._start()
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def show(self, table: RenderableType) -> None:
        """A table for people, on standard output."""
        Console().print(table)


def _summary(values: Mapping[str, float]) -> str:
    shown = ("loss_base", "loss_detail", "l1", "psnr", "align", "images_per_second")
    return "  ".join(f"{name.removeprefix('loss_')} {values[name]:.3g}" for name in shown if name in values)
