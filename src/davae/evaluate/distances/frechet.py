"""Frechet distances of features as Gaussians: FID and sFID of Inception, FDD of DINOv2, fd-solids of the judge."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from davae.core.moments import FeatureMoments, frechet_distance
from davae.core.randomness import generator
from davae.evaluate.bootstrap import LEVEL, interval
from davae.evaluate.metric import FeatureMetric, FeatureSet, Moments, Rows, Score

_FEW = 9_999  # images; what is published is of 10,000 or 50,000
_RESAMPLES = 200
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


def resampled_interval(
    x: NDArray[Any], y: NDArray[Any], seed: int, resamples: int = _RESAMPLES
) -> tuple[float, float]:
    """Within which the distance of two sets of features [N, F], [M, F] would lie with other images of their kinds.

    Bootstrap over the images of both sets. Resampled sets hold fewer different images and lie farther apart, so the
    spread of their distances is laid around the distance itself.
    """
    draws, value, distances = generator(seed, "bootstrap", "frechet"), frechet(moments_of(x), moments_of(y)), []
    for _ in range(resamples):
        parts = [rows[torch.randint(len(rows), (len(rows),), generator=draws).numpy()] for rows in (x, y)]
        distances.append(frechet(*map(moments_of, parts)))
    low, high = interval(np.array(distances) - np.mean(distances))
    return max(0.0, value + low), value + high


def _measure_with_interval(column: str) -> Callable[[FeatureSet, FeatureSet, int], list[Score]]:
    def measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
        assert generated.rows is not None and reference.rows is not None
        x, y = (np.asarray(rows[:], dtype=np.float64) for rows in (generated.rows, reference.rows))
        name, value = labelled(column, len(x)), frechet(moments_of(x), moments_of(y))
        return [Score(name, value, resampled_interval(x, y, seed), note=_note(name, len(x), x.shape[1]))]

    return measure


def _measure(column: str) -> Callable[[FeatureSet, FeatureSet, int], list[Score]]:
    def measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
        assert generated.moments is not None and reference.moments is not None
        name = labelled(column, generated.count)
        note = _note(name, generated.count, len(generated.moments.mean))
        return [Score(column, frechet(generated.moments, reference.moments), note=note, counted=True)]

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
FRECHET = FeatureMetric(
    "frechet",
    "Frechet distance",
    "features",
    "vector",
    "moments",
    _measure("Frechet distance"),
    f"{_PROTOCOL}the vectors of two files",
    "lower",
)
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
FD_SOLIDS = FeatureMetric(
    "fd-solids",
    "FD-solids",
    "solids",
    "pool",
    "rows",
    _measure_with_interval("FD-solids"),
    f"{_PROTOCOL}the features of the judge of solids; interval of {LEVEL:.0%} by bootstrap over the images of both "
    f"sets, {_RESAMPLES} resamples",
    "lower",
)
