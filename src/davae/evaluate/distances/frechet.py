"""Frechet distances of features as Gaussians: FID and sFID on Inception's, FDD on DINOv2's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davae.core.moments import FeatureMoments, frechet_distance
from davae.evaluate.metric import FeatureMetric, FeatureSet, Moments, Rows, Score

_FEW = 9_999  # images; what is published is of 10,000 or 50,000
_BLOCK = 512  # rows; the same blocks whatever batches the features came in, so that the sums round alike


def moments_of(rows: Rows | NDArray[Any]) -> Moments:
    """Mean and covariance of feature vectors [N, F], N at least 2, a block in memory at a time."""
    moments = FeatureMoments(rows.shape[1])
    for start in range(0, len(rows), _BLOCK):
        moments.update(torch.from_numpy(np.array(rows[start : start + _BLOCK], dtype=np.float64)))
    return Moments(moments.mean.numpy(), moments.cov.numpy())


def frechet(a: Moments, b: Moments) -> float:
    """Frechet distance of two Gaussians, by symmetric eigenvalues in float64.

    Raises:
        ValueError: they are of features of another number.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"A Frechet distance is of features of one kind; got {len(a.mean)} and {len(b.mean)} a vector. "
            f"Take both from one network."
        )
    return frechet_distance(*(torch.from_numpy(np.array(part)) for m in (a, b) for part in (m.mean, m.covariance)))


def _measure(column: str) -> Callable[[FeatureSet, FeatureSet, int], list[Score]]:
    def measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
        assert generated.moments is not None and reference.moments is not None
        name = labelled(column, generated.count)
        note = _note(name, generated.count, len(generated.moments.mean))
        return [Score(name, frechet(generated.moments, reference.moments), note=note)]

    return measure


def _note(name: str, count: int, length: int) -> str:
    if count > _FEW:
        return ""
    singular = f"; a covariance of {length:,} numbers from {count:,} images is singular" if count <= length else ""
    return f"{name} is biased upwards{singular}. It compares with other {name}, not with numbers of more images."


def labelled(column: str, count: int) -> str:
    """A name with the number of images that its number depends on: FID-50k, FID-500."""
    return f"{column}-{count // 1000}k" if count and count % 1000 == 0 else f"{column}-{count}"


_PROTOCOL = "Frechet distance in float64 by eigenvalues, covariances 1 / (N - 1), of "
FID = FeatureMetric(
    "fid", "FID", "inception", "pool", "moments", _measure("FID"), f"{_PROTOCOL}the 2048 pool features", "lower"
)
SFID = FeatureMetric(
    "sfid",
    "sFID",
    "inception",
    "spatial",
    "moments",
    _measure("sFID"),
    f"{_PROTOCOL}the 17 x 17 map of the first 7 channels of Mixed_6d.branch1x1",
    "lower",
)
FDD = FeatureMetric(
    "fdd", "FDD", "dinov2", "class", "moments", _measure("FDD"), f"{_PROTOCOL}DINOv2's class token", "lower"
)
