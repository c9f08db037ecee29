"""Inception score: how sure the network is of each image, and how different the images are."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score

SPLIT = 5000
"""Images of a split of guided-diffusion's evaluator."""
SPLITS = 10
"""Of torch-fidelity."""
_BLOCK = 1024  # rows


def adm_score(logits: Rows | NDArray[Any], split: int = SPLIT) -> NDArray[np.float64]:
    """Scores of consecutive blocks of `split` images in their order, as guided-diffusion's evaluator takes them.

    Args:
        logits: [N, classes], without the last layer's bias.
        split: images a block; a shorter last block counts as much as the others.

    Returns:
        A score each; the published number is their mean.
    """
    edges = [*range(0, len(logits), split), len(logits)]
    return np.array([_score(logits, np.arange(a, b)) for a, b in zip(edges, edges[1:], strict=False)])


def shuffled_score(logits: Rows | NDArray[Any], splits: int = SPLITS, seed: int | None = 2020) -> NDArray[np.float64]:
    """Scores of equal splits of the shuffled images, as torch-fidelity takes them.

    Args:
        logits: [N, classes], without the last layer's bias; N at least `splits`.
        splits: how many.
        seed: of numpy's `RandomState`; None leaves the order alone.

    Returns:
        A score each; the published numbers are their mean and their deviation (1 / N).
    """
    count = len(logits)
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    return np.array([_score(logits, order[i * count // splits : (i + 1) * count // splits]) for i in range(splits)])


def _score(logits: Rows | NDArray[Any], rows: NDArray[np.intp]) -> float:
    """exp of the mean divergence of p(class | image) from p(class), over some of the rows."""
    marginal, negative_entropy = np.zeros(logits.shape[1]), 0.0
    for log_probability in _log_softmax(logits, rows):
        probability = np.exp(log_probability)
        marginal += probability.sum(axis=0)
        negative_entropy += float((probability * log_probability).sum())
    marginal /= len(rows)
    seen = marginal[marginal > 0]
    return float(np.exp(negative_entropy / len(rows) - (seen * np.log(seen)).sum()))


def _log_softmax(logits: Rows | NDArray[Any], rows: NDArray[np.intp]) -> Iterator[NDArray[np.float64]]:
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(logits[rows[start : start + _BLOCK]], dtype=np.float64)
        block = block - block.max(axis=1, keepdims=True)
        yield block - np.log(np.exp(block).sum(axis=1, keepdims=True))


def _in_file_order(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None
    scores = adm_score(generated.rows)
    rest = len(generated.rows) % SPLIT
    note = f"The last split of IS has {rest:,} images instead of {SPLIT:,}, and counts alike." if rest else ""
    details = {"splits": len(scores), "deviation": float(scores.std())}
    return [Score("IS", float(scores.mean()), details=details, note=note)]


def _shuffled(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None
    scores = shuffled_score(generated.rows)
    return [Score("IS, shuffled", float(scores.mean()), details={"splits": SPLITS, "deviation": float(scores.std())})]


_CLASSES = "softmax over 1008 classes without the last layer's bias"
IS = FeatureMetric(
    "is",
    "Inception score",
    "inception",
    "logits",
    "rows",
    _in_file_order,
    f"mean over consecutive splits of {SPLIT:,} images in file order, a shorter last one counting alike; {_CLASSES}",
    "higher",
    needs="nothing",
)
IS_SHUFFLED = FeatureMetric(
    "is-shuffled",
    "Inception score",
    "inception",
    "logits",
    "rows",
    _shuffled,
    f"mean over {SPLITS} splits of the images shuffled by numpy's RandomState(2020); {_CLASSES}",
    "higher",
    needs="nothing",
    least=SPLITS,
)
