"""MIND: sliced Wasserstein distance of features, without a covariance and so of use for few images (2605.06797)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.core.randomness import normal
from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score

DIRECTIONS = 1000
_AT_ONCE = 125  # directions; projections of 50,000 images on them are 50 MB
_BLOCK = 2048  # rows


def mind(x: Rows | NDArray[Any], y: Rows | NDArray[Any], directions: int = DIRECTIONS, seed: int = 0) -> float:
    """3 F times the mean squared difference of sorted projections of [N, F] and [N, F] on random directions.

    Args:
        x: features.
        y: as many.
        directions: unit vectors, drawn uniformly.
        seed: of the directions.

    Raises:
        ValueError: the sets are of different size.
    """
    if len(x) != len(y):
        raise ValueError(f"MIND needs as many images as references; got {len(x)} and {len(y)}. Take as many of both.")
    total = 0.0
    for start in range(0, directions, _AT_ONCE):
        ids = [f"direction {number}" for number in range(start, min(start + _AT_ONCE, directions))]
        vectors = normal(seed, "MIND", ids, (x.shape[1],)).double().numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        difference = _sorted_projections(x, vectors) - _sorted_projections(y, vectors)
        total += float((difference**2).mean(axis=1).sum())
    return 3 * x.shape[1] * total / directions


def _sorted_projections(x: Rows | NDArray[Any], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """[directions, N], each row in ascending order."""
    parts = [np.asarray(x[i : i + _BLOCK], dtype=np.float64) @ vectors.T for i in range(0, len(x), _BLOCK)]
    projections = np.ascontiguousarray(np.concatenate(parts).T)
    projections.sort(axis=1)
    return projections


def _measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None and reference.rows is not None
    x, y = generated.rows, reference.rows
    count = min(len(x), len(y))
    value = mind(_some(x, count, seed), _some(y, count, seed), seed=seed)
    return [Score("MIND", value, details={"images a side": count, "directions": DIRECTIONS})]


def _some(rows: Rows, count: int, seed: int) -> Rows | NDArray[Any]:
    """As many rows, drawn without replacement where there are more."""
    if count == len(rows):
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


MIND = FeatureMetric(
    "mind",
    "MIND",
    "inception",
    "pool",
    "rows",
    _measure,
    f"3 d times the squared sliced Wasserstein distance of features over {DIRECTIONS:,} directions, float64; of "
    "the larger set as many images are drawn as the other has",
    "lower",
)
