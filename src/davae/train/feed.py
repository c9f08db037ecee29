"""Which positions a step sees: a function of (step, process), served ahead of time by torch's DataLoader."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from davae.train.batch import Batch, TrainingSet

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """Which part of a global batch a process and micro-batch take.

    Args:
        batch_size: the global batch.
        accumulation: micro-batches a step.
        num_processes: that share it.
        process: this one.
    """

    batch_size: int
    accumulation: int = 1
    num_processes: int = 1
    process: int = 0

    def __post_init__(self) -> None:
        parts = self.accumulation * self.num_processes
        if self.batch_size % parts:
            raise ValueError(
                f"The batch cannot be shared evenly; got batch_size {self.batch_size} for {self.num_processes} "
                f"processes x {self.accumulation} accumulation steps. Use a multiple of {parts}, or accumulate less."
            )

    def positions(self, step: int) -> list[list[int]]:
        """Positions of each micro-batch of a step."""
        size = self.batch_size // (self.accumulation * self.num_processes)
        start = step * self.batch_size
        chunks = [micro * self.num_processes + self.process for micro in range(self.accumulation)]
        return [list(range(start + chunk * size, start + (chunk + 1) * size)) for chunk in chunks]


class _Positions:
    """Batch sampler: the micro-batches of steps start, start + 1, ..., stop - 1."""

    def __init__(self, share: Share, start: int, stop: int) -> None:
        self.share, self.start, self.stop = share, start, stop

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            yield from self.share.positions(step)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.accumulation


def feed(training_set: TrainingSet, share: Share, start: int, stop: int, workers: int = 0) -> Iterator[list[Batch]]:
    """The micro-batches of each step from `start` to `stop`, prepared ahead by `workers` processes."""
    loader = DataLoader(
        training_set,
        batch_sampler=_Positions(share, start, stop),
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for _ in range(start, stop):
        yield [next(batches) for _ in range(share.accumulation)]


def _unchanged(batch: _T) -> _T:
    return batch


def _quiet_worker(_: int) -> None:
    # Ctrl-C and a batch system's SIGTERM reach the workers too, but the main process has a step to finish and to
    # save, and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stay_a_while)


def _stay_a_while(number: int, frame: FrameType | None) -> None:
    # A second SIGTERM, or a minute, is taken seriously: Python ends forgotten workers with this signal.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(60)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
