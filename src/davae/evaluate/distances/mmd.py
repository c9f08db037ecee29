"""CMMD: squared MMD of CLIP embeddings under a Gaussian kernel (Jayasumana et al. 2024)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score

SIGMA, SCALE = 10.0, 1000.0
_BLOCK = 2048  # rows and columns


def cmmd(x: Rows | NDArray[Any], y: Rows | NDArray[Any]) -> float:
    """1000 times the biased squared MMD (an image is compared with itself too) of [N, F] and [M, F], sigma 10."""
    return SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Rows | NDArray[Any], y: Rows | NDArray[Any]) -> float:
    total = 0.0
    for i in range(0, len(x), _BLOCK):
        a = np.asarray(x[i : i + _BLOCK], dtype=np.float64)
        for j in range(0, len(y), _BLOCK):
            b = np.asarray(y[j : j + _BLOCK], dtype=np.float64)
            squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
            total += float(np.exp(squared / (-2 * SIGMA**2)).sum())
    return total / (len(x) * len(y))


def _measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None and reference.rows is not None
    return [Score("CMMD", cmmd(generated.rows, reference.rows))]


CMMD = FeatureMetric(
    "cmmd",
    "CMMD",
    "clip-336",
    "image",
    "rows",
    _measure,
    f"{SCALE:.0f} x biased squared MMD of unit image embeddings, Gaussian kernel of sigma {SIGMA:.0f}, float64",
    "lower",
)
