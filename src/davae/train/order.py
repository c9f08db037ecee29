"""Which sample stands at a position of the training sequence, and which one comes next.

Training visits an endless sequence of positions 0, 1, 2, ... Position p is sample permutation(epoch)[p mod n]
of epoch p div n, so that the order does not depend on where a run was resumed or on how many processes share it.
Where samples have several sizes, a step takes all its positions from one of them.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from davae.core.randomness import permutation, uniform

_GOLDEN = (5**0.5 - 1) / 2


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
