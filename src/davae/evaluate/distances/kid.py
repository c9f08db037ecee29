"""Kernel distance (KID): squared MMD of features under the cubic kernel (x . y / d + 1)^3, over random subsets."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score

SUBSETS, SUBSET_SIZE = 100, 1000
_SEED = 2020


def kernel_distances(
    x: Rows | NDArray[Any],
    y: Rows | NDArray[Any],
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
    seed: int = _SEED,
    biased: bool = False,
) -> NDArray[np.float64]:
    """Squared MMD of random subsets of two sets of features.

    Args:
        x: [N, F].
        y: [M, F].
        subsets: how many pairs of subsets are drawn.
        size: vectors a subset, at most N and M.
        seed: of numpy's `RandomState`, by which torch-fidelity draws: from x, then from y, without replacement.
        biased: whether a vector is compared with itself as well.

    Returns:
        A value a pair; their mean is the distance.
    """
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows_x = draw.choice(len(x), size, replace=False)
        rows_y = draw.choice(len(y), size, replace=False)
        values.append(squared_mmd(x[rows_x], y[rows_y], biased))
    return np.array(values)


def squared_mmd(x: NDArray[Any], y: NDArray[Any], biased: bool = False) -> float:
    """Squared MMD of two sets of features [N, F] and [M, F] under the cubic kernel, all in one piece."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return _within(x, biased) + _within(y, biased) - 2 * float(_kernel(x, y).mean())


def _within(x: NDArray[np.float64], biased: bool) -> float:
    kernel = _kernel(x, x)
    if biased:
        return float(kernel.mean())
    return float((kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1)))


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _measure(column: str, biased: bool) -> Callable[[FeatureSet, FeatureSet, int], list[Score]]:
    def measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
        assert generated.rows is not None and reference.rows is not None
        fewest = min(len(generated.rows), len(reference.rows))
        size = min(SUBSET_SIZE, fewest)
        values = kernel_distances(generated.rows, reference.rows, size=size, biased=biased)
        details = {"subsets": SUBSETS, "subset_size": size, "deviation": float(values.std()), "subset_seed": _SEED}
        # Subsets that are most of a set do not vary as other images would.
        low, high = np.percentile(values, [2.5, 97.5]).tolist()
        is_telling = 2 * size <= fewest
        note = "" if is_telling else f"{column} has no interval: subsets of {size:,} are most of {fewest:,} images."
        return [Score(column, float(values.mean()), (low, high) if is_telling else None, details, note)]

    return measure


_PROTOCOL = (
    "squared MMD under (x . y / d + 1)^3 of features in float64, mean over 100 subsets of 1,000 images (of all, "
    "where a set has fewer)"
)
KID = FeatureMetric(
    "kid",
    "KID",
    "inception",
    "pool",
    "rows",
    _measure("KID", biased=False),
    f"{_PROTOCOL}; unbiased: no image is compared with itself",
    "lower",
)
KID_BIASED = FeatureMetric(
    "kid-biased",
    "KID",
    "inception",
    "pool",
    "rows",
    _measure("KID, biased", biased=True),
    f"{_PROTOCOL}; biased: an image is compared with itself as well",
    "lower",
)
