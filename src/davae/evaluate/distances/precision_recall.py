"""Precision and recall of sets of features: who lies in a ball around whom (Kynkaanniemi et al. 2019).

A ball reaches from a vector to its k-th nearest neighbour within its own set. As guided-diffusion's evaluator, but in
float32 throughout; blocks of distances are in memory one at a time.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score

NEIGHBOURS = 3
_ROWS, _COLUMNS = 2048, 8192  # of a block of distances: 64 MiB


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of samples within a ball of the reference, of the reference within a ball of samples."""

    precision: float
    recall: float


def precision_recall(
    samples: Rows | NDArray[Any], reference: Rows | NDArray[Any], neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Both, of feature vectors [N, F] and [M, F]; each set has more than `neighbours`.

    Raises:
        ValueError: a set has too few.
    """
    radii_samples, radii_reference = squared_radii(samples, neighbours), squared_radii(reference, neighbours)
    within_reference = torch.zeros(len(samples), dtype=torch.bool)
    within_samples = torch.zeros(len(reference), dtype=torch.bool)
    for rows, a in _blocks(samples, _ROWS):
        for columns, b in _blocks(reference, _COLUMNS):
            distances = _squared_distances(a, b)
            within_reference[rows] |= (distances <= radii_reference[columns]).any(dim=1)
            within_samples[columns] |= (distances <= radii_samples[rows, None]).any(dim=0)
    return PrecisionRecall(within_reference.double().mean().item(), within_samples.double().mean().item())


def squared_radii(vectors: Rows | NDArray[Any], neighbours: int = NEIGHBOURS) -> Tensor:
    """Squared distance of each of [N, F] vectors to its k-th nearest neighbour other than itself: float32 [N].

    Raises:
        ValueError: there are too few.
    """
    if len(vectors) <= neighbours:
        raise ValueError(
            f"Precision and recall look at {neighbours} neighbours of an image; got {len(vectors)} images. "
            f"Give {neighbours + 1} or more."
        )
    radii = torch.empty(len(vectors))
    for rows, a in _blocks(vectors, _ROWS):
        nearest = torch.empty(len(a), 0)
        for _, b in _blocks(vectors, _COLUMNS):
            candidates = torch.cat([nearest, _squared_distances(a, b)], dim=1)
            nearest = candidates.topk(min(neighbours + 1, candidates.shape[1]), dim=1, largest=False).values
        radii[rows] = nearest.max(dim=1).values  # itself, at no distance, is one of them
    return radii


def _blocks(vectors: Rows | NDArray[Any], size: int) -> Any:
    for start in range(0, len(vectors), size):
        rows = slice(start, min(start + size, len(vectors)))
        yield rows, torch.from_numpy(np.array(vectors[rows], dtype=np.float32))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    lengths_a, lengths_b = a.square().sum(dim=1, keepdim=True), b.square().sum(dim=1)
    return torch.addmm(lengths_b, a, b.T, alpha=-2).add_(lengths_a).clamp_min_(0)


def _measure(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None and reference.rows is not None
    precision, recall = precision_recall(generated.rows, reference.rows)
    return [Score("Precision", precision), Score("Recall", recall)]


PRECISION_RECALL = FeatureMetric(
    "precision-recall",
    "Precision and recall",
    "inception",
    "pool",
    "rows",
    _measure,
    f"balls to the {NEIGHBOURS} nearest neighbours of features, squared distances in float32; the published "
    "protocol takes 50,000 images and a reference of 10,000",
    "higher",
    least=NEIGHBOURS + 1,
)
