"""Bootstrap intervals against what is known of a mean."""

import numpy as np
import pytest

from davae.evaluate.bootstrap import interval, resampled_means


def test_means_spread_as_a_standard_error_says() -> None:
    values = np.linspace(0, 1, 400)
    means = resampled_means(values, np.ones(400), 0, "test")
    assert means.mean() == pytest.approx(0.5, abs=2e-3)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.06)
    low, high = interval(means)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_draws_are_of_seed_and_purpose_alone() -> None:
    values, counts = np.arange(9.0), np.ones(9)
    means = resampled_means(values, counts, 0, "a")
    assert np.array_equal(means, resampled_means(values, counts, 0, "a"))
    assert not np.array_equal(means, resampled_means(values, counts, 1, "a"))
    assert not np.array_equal(means, resampled_means(values, counts, 0, "b"))


def test_groups_weigh_by_what_they_hold() -> None:
    means = resampled_means(np.array([8.0, 0.0]), np.array([8.0, 2.0]), 0, "a")
    assert set(means) == {1.0, 0.8, 0.0}
