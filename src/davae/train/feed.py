"""Which samples a step sees: a function of (seed, step, process), served by torch's DataLoader.

Training visits an endless sequence of positions 0, 1, 2, ... Position p is sample permutation(epoch)[p mod n]
of epoch p div n, so that the order does not depend on where a run was resumed or on how many processes share it.
Where samples have several sizes, a step takes all its positions from one of them.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from davae.core.randomness import permutation, uniform
from davae.data.source import ImageSource

Batch = dict[str, Tensor]

_GOLDEN = (5**0.5 - 1) / 2


class TrainingSet(Protocol):
    """Samples by position in the endless training sequence."""

    def __getitems__(self, positions: list[int]) -> Batch:
        """The samples at `positions` as one batch; holds "position", int64 [B]."""


class Order:
    """Position in the endless sequence -> index of a sample, one permutation an epoch.

    Args:
        size: number of samples.
        seed: of the permutations.
        purpose: orders of other purposes are independent.
    """

    def __init__(self, size: int, seed: int, purpose: str = "order") -> None:
        self.size, self.seed, self.purpose = size, seed, purpose
        self._epochs: dict[int, Tensor] = {}

    def indices(self, positions: Sequence[int]) -> list[int]:
        """Sample indices of positions."""
        return [int(self._epoch(position // self.size)[position % self.size]) for position in positions]

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            if len(self._epochs) > 2:  # a batch spans at most a few epochs; older ones are never visited again
                self._epochs.pop(min(self._epochs))
            self._epochs[epoch] = permutation(self.seed, self.purpose, epoch, self.size)
        return self._epochs[epoch]


class BucketOrder:
    """As `Order`, for samples that lie bucket by bucket: all positions of a step are of one bucket.

    Step k takes the bucket that a point meets which moves along the sample numbers by the golden section at each
    step: every bucket has its share of any stretch of steps, a few more or less (a Kronecker sequence of low
    discrepancy), and none waits longer than about two times its share says. A bucket's own steps walk through it in
    epochs of its own, as `Order` does with a whole set. So nothing is left over at the end of an epoch, and in the
    long run all samples are seen equally often. A step on a bucket of fewer samples than a batch sees some of them
    more than once; its turn comes as much more rarely. With one bucket it is `Order`, number by number.

    Args:
        counts: number of samples of each bucket, in storage order; may be 0, but not all.
        seed: of the permutations, and of where the point starts.
        batch_size: images a step, over all processes and micro-batches.
    """

    def __init__(self, counts: Sequence[int], seed: int, batch_size: int) -> None:
        if sum(counts) < 1 or min(counts) < 0 or batch_size < 1:
            raise ValueError(
                f"No order of buckets of {list(counts)} samples in batches of {batch_size}; allowed are counts from "
                f"0 up with a sum of at least 1, and batches of at least 1. Check the latent cache."
            )
        self.seed, self.batch_size = seed, batch_size
        self._ends = torch.tensor(list(accumulate(counts)))
        self._starts = [0, *self._ends.tolist()]
        purposes = ["order", *(f"order of bucket {number}" for number in range(1, len(counts)))]
        self._orders = [Order(count, seed, purpose) for count, purpose in zip(counts, purposes, strict=True)]
        self._buckets, self._turns = self._schedule(1024)

    def indices(self, positions: Sequence[int]) -> list[int]:
        """Sample indices of positions; step k has the positions from k * batch_size on."""
        return [self._index(*divmod(position, self.batch_size)) for position in positions]

    def _index(self, step: int, place: int) -> int:
        if step >= len(self._buckets):
            self._buckets, self._turns = self._schedule(2 * step)
        bucket, turn = int(self._buckets[step]), int(self._turns[step])
        return self._starts[bucket] + self._orders[bucket].indices([turn * self.batch_size + place])[0]

    def _schedule(self, steps: int) -> tuple[Tensor, Tensor]:
        """Of each step the bucket, and how many steps this bucket had before."""
        start = uniform(self.seed, "first bucket", [0]).double()
        point = (start + torch.arange(steps, dtype=torch.float64) * _GOLDEN) % 1 * self._ends[-1]
        buckets = torch.searchsorted(self._ends, point.long(), right=True)
        by_bucket = torch.argsort(buckets, stable=True)
        starts = torch.searchsorted(buckets[by_bucket], buckets)
        turns = torch.empty_like(buckets)
        turns[by_bucket] = torch.arange(steps)
        return buckets, turns - starts


class ImageSet(Dataset):
    """Images of a source for training: batches of "image" uint8 [B, 3, S, S] and "position".

    Args:
        source: where the images come from.
        size: S.
        seed: of order, crops and flips.
        flip: mirror half of the images.
        crop_from: side that images are brought to before a random window of S is cut out; None shows them whole.
    """

    def __init__(
        self, source: ImageSource, size: int, seed: int, flip: bool = True, crop_from: int | None = None
    ) -> None:
        self.source, self.size, self.seed, self.flip = source, size, seed, flip
        self.full_size = size if crop_from is None else crop_from
        if self.full_size < size:
            raise ValueError(
                f"Cannot crop {size} px from images of crop_from {crop_from} px; allowed {size} or more."
            )
        self.order = Order(len(source), seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, positions: list[int]) -> Batch:
        """See `TrainingSet`."""
        images = self.source.images(self.order.indices(positions), self.full_size)
        if self.full_size > self.size:
            room = self.full_size - self.size + 1
            tops, lefts = ((uniform(self.seed, axis, positions) * room).long() for axis in ("crop top", "crop left"))
            windows = zip(images, tops.tolist(), lefts.tolist(), strict=True)
            images = torch.stack([image[:, y : y + self.size, x : x + self.size] for image, y, x in windows])
        if self.flip:
            mirrored = uniform(self.seed, "flip", positions) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return {"image": images, "position": torch.tensor(positions)}


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


def feed(training_set: Any, share: Share, start: int, stop: int, workers: int = 0) -> Iterator[list[Batch]]:
    """The micro-batches of each step from `start` to `stop`, prepared ahead by `workers` processes."""
    loader = DataLoader(
        training_set,
        batch_sampler=_Positions(share, start, stop),
        collate_fn=_whole_batch,
        num_workers=workers,
        worker_init_fn=_quiet_worker,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    for _ in range(start, stop):
        yield [next(batches) for _ in range(share.accumulation)]


def _whole_batch(batch: Batch) -> Batch:
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
