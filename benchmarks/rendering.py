"""Images a second that `solids` renders, which bounds every training on them: python benchmarks/rendering.py"""

import time

import torch

from davae.data.solids import SolidsSource
from davae.evaluate.hardware import hardware

BATCH, SECONDS = 64, 5.0


def rate(source: SolidsSource, size: int) -> float:
    """Images a second at one size, after a warm-up."""
    source.images(range(BATCH), size)
    started, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < SECONDS:
        first = done % (len(source) - BATCH)
        source.images(range(first, first + BATCH), size)
        done += BATCH
    return done / elapsed


def main() -> None:
    """Print a line a size."""
    print(hardware())
    source = SolidsSource(10_000, seed=0)
    for size in (64, 128, 256):
        print(f"{size:4d} px  {rate(source, size):7.0f} images/s  ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
