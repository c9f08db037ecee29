"""Accuracy of drawn solids: what was asked for counts, and nothing else; and the interval of fd-solids."""

import numpy as np
import pytest

from davae.evaluate.distances.frechet import FD_SOLIDS, frechet, moments_of, resampled_interval
from davae.evaluate.distances.solids_accuracy import SOLIDS_ACCURACY, SOLIDS_FINENESS, correct
from davae.evaluate.metric import FeatureSet
from davae.evaluate.spaces.solids import ANSWERS


def answers(*captions: str) -> np.ndarray:
    """Logits of a judge that sees these solids."""
    rows = [[5.0 if word in caption.split() else 0.0 for _, word in ANSWERS] for caption in captions]
    return np.array(rows, np.float32)


def test_each_attribute_that_is_asked_for_is_compared() -> None:
    seen = answers("a striped red box", "a plain blue sphere", "a ringed pink pyramid")
    found = correct(seen, ["a striped red box", "a plain green box", "ringed pyramid"])
    assert {name: right.tolist() for name, right in found.items()} == {
        "shape": [True, False, True],
        "material": [True, True, True],
        "colour": [True, False],
    }


def test_shares_have_intervals() -> None:
    seen, asked = answers(*["a plain red box"] * 40), ["plain box"] * 30 + ["plain sphere"] * 10
    shape, material = SOLIDS_ACCURACY.measure(FeatureSet(40, seen, asked=asked), FeatureSet(0), 0)
    assert (shape.column, shape.value, material.value) == ("Shape accuracy", 0.75, 1.0)
    assert shape.interval is not None and shape.interval[0] < 0.75 < shape.interval[1]
    assert material.interval == (1.0, 1.0)
    [fineness] = SOLIDS_FINENESS.measure(FeatureSet(2, np.array([[0.5], [1.0]], np.float32)), FeatureSet(0), 0)
    assert fineness.value == 0.75


@pytest.mark.parametrize("text", ["a photograph of a dog", "a red box beside a blue sphere", "", "class 3"])
def test_what_says_nothing_of_one_solid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Cannot tell which solid is meant; got .* as in 'a striped red box'"):
        correct(answers("a plain red box"), [text])


def test_the_interval_of_a_frechet_distance_holds_it_and_shrinks_with_more_images() -> None:
    draw = np.random.default_rng(0)
    widths = []
    for count in (50, 800):
        x, y = draw.normal(size=(count, 4)), draw.normal(0.5, size=(count, 4))
        low, high = resampled_interval(x, y, seed=0)
        assert 0 <= low < frechet(moments_of(x), moments_of(y)) < high
        assert (low, high) == resampled_interval(x, y, seed=0)
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    [score] = FD_SOLIDS.measure(FeatureSet(800, x), FeatureSet(800, y), 0)
    assert score.column == "FD-solids-800" and score.interval == (low, high)
