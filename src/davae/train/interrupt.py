"""SIGINT and SIGTERM ask the loop to save and stop after the current step; elsewhere they end a stage cleanly."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

_Handler = Callable[[int, FrameType | None], object] | int | None


class Interrupted(Exception):
    """A signal ended the training; everything up to `step` was saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signal_number).name}; saved at step {step}.")
        self.signal_number, self.step = signal_number, step


class Terminated(KeyboardInterrupt):
    """SIGTERM outside a training loop."""


@contextmanager
def terminable() -> Iterator[None]:
    """While entered, SIGTERM unwinds like Ctrl-C, so that what is half-written is cleaned up and time is recorded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Interrupt:
    """While entered, remembers SIGINT and SIGTERM instead of dying of them. A second SIGINT dies."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested_anywhere(self, accelerator: "Accelerator") -> bool:
        """Whether any process was asked to stop, so that all of them save the same step."""
        if accelerator.num_processes == 1:
            return self.signal_number != 0
        import torch

        flag = torch.tensor(self.signal_number, device=accelerator.device)
        total = int(accelerator.reduce(flag, "sum"))
        self.signal_number = self.signal_number or (signal.SIGTERM if total else 0)
        return total != 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
