"""Whether drawn solids are what was asked for, and how fine they are, by the judge of `solids`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from davae.data.solids import ATTRIBUTES, attributes_of
from davae.evaluate.bootstrap import LEVEL, RESAMPLES, interval, resampled_means
from davae.evaluate.metric import FeatureMetric, FeatureSet, Rows, Score
from davae.evaluate.spaces.solids import ANSWERS

_INTERVAL = f"intervals of {LEVEL:.0%} by bootstrap over images, {RESAMPLES} resamples"


def correct(answers: Rows | NDArray[np.float32], asked: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Attribute -> whether each image of which it was asked is named as it was asked for.

    Args:
        answers: logits [N, words], in the order of `ANSWERS`.
        asked: caption or class name of each image; attributes that it does not name are not judged.

    Raises:
        ValueError: one says nothing of a solid.
    """
    logits, wanted = np.asarray(answers[:]), [attributes_of(text) for text in asked]
    found = {}
    for name in ATTRIBUTES:
        rows = [row for row, attributes in enumerate(wanted) if name in attributes]
        columns = [column for column, (attribute, _) in enumerate(ANSWERS) if attribute == name]
        if rows:
            named = logits[np.ix_(rows, columns)].argmax(axis=1)
            found[name] = named == np.array([wanted[row][name] for row in rows])
    return found


def _accuracy(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None and generated.asked is not None
    right = correct(generated.rows, generated.asked)
    return [_mean(f"{name.capitalize()} accuracy", values, seed) for name, values in right.items()]


def _fineness(generated: FeatureSet, reference: FeatureSet, seed: int) -> list[Score]:
    assert generated.rows is not None
    return [_mean("Fineness", np.asarray(generated.rows[:])[:, 0], seed)]


def _mean(column: str, values: NDArray, seed: int) -> Score:
    numbers = values.astype(np.float64)
    spread = interval(resampled_means(numbers, np.ones(len(numbers)), seed, column))
    return Score(column, float(numbers.mean()), spread, {"judged": len(numbers)})


SOLIDS_ACCURACY = FeatureMetric(
    "solids-accuracy",
    "Accuracy of solids",
    "solids",
    "answers",
    "rows",
    _accuracy,
    f"share of images in which the judge names what their class or caption asks for; {_INTERVAL}",
    "higher",
    needs="prompts",
    least=1,
)
SOLIDS_FINENESS = FeatureMetric(
    "solids-fineness",
    "Fineness of solids",
    "solids",
    "fineness",
    "rows",
    _fineness,
    "share of 128 px, a side, that the judge sees in an image: 1 as rendered, 0.5 as enlarged from half as many; "
    f"{_INTERVAL}",
    "higher",
    needs="nothing",
    least=1,
)
