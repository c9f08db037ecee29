"""How far a mean would move with other samples of the same kind: bootstrap intervals."""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from davae.core.randomness import generator

LEVEL: Final = 0.95
RESAMPLES: Final = 2000
_BLOCK: Final = 1 << 22  # draws held at once


def resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], seed: int, purpose: str, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means over groups that are drawn again and again, with replacement.

    Args:
        sums: of the values of each group [N], for example the correct images of a prompt.
        counts: of the values in each group [N].
        seed: of the draws.
        purpose: what the draws are for, so that two uses of a seed do not draw alike.
        resamples: how often.

    Returns:
        [resamples]: sum of the sums over sum of the counts, of as many groups as there are.
    """
    draws, rows = generator(seed, "bootstrap", purpose), max(1, _BLOCK // len(sums))
    means = []
    for start in range(0, resamples, rows):
        size = (min(rows, resamples - start), len(sums))
        drawn = torch.randint(len(sums), size, generator=draws).numpy()
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """The ends between which `LEVEL` of the means lie."""
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
