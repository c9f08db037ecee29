"""Which drawn and real images a row of a table by category is of."""

import pytest

from davae.evaluate.categories import by_category

REAL = ["animals", "food", "animals"]
DRAWN = ["food", "animals"]


def test_the_images_of_a_category_are_compared_with_their_own_and_all_with_all() -> None:
    found = [(item.name, item.drawn.tolist(), item.real.tolist()) for item in by_category(DRAWN, REAL)]
    assert found == [("animals", [1], [0, 2]), ("food", [0], [1]), ("overall", [0, 1], [0, 1, 2])]


def test_a_category_of_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match="Category food has only real images"):
        by_category(["animals"], REAL)
    with pytest.raises(ValueError, match="Category art has only drawn images"):
        by_category([*DRAWN, "art"], REAL)
    with pytest.raises(ValueError, match="got none"):
        by_category([], REAL)
