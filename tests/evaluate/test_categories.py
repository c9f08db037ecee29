"""Distances by category with distances that count images."""

import pytest

from davae.evaluate.categories import distances_by_category

REAL = {"animals/1.jpg": "animals", "animals/2.jpg": "animals", "food/3.jpg": "food"}
DRAWN = {"0.png": "animals", "1.png": "food"}


def test_every_category_and_the_whole_under_every_protocol() -> None:
    seen = {
        "pytorch-fid": lambda ours, theirs: float(len(ours)),
        "clean-fid": lambda ours, theirs: float(len(theirs)),
    }
    table = {(item.row, item.column): item for item in distances_by_category(DRAWN, REAL, seen)}
    assert {cell: item.value for cell, item in table.items()} == {
        ("animals", "pytorch-fid"): 1,
        ("animals", "clean-fid"): 2,
        ("food", "pytorch-fid"): 1,
        ("food", "clean-fid"): 1,
        ("overall", "pytorch-fid"): 2,
        ("overall", "clean-fid"): 3,
    }
    assert table["overall", "clean-fid"].protocol == {"distance": "clean-fid", "drawn": 2, "real": 3}


def test_the_images_of_a_category_are_compared_with_their_own() -> None:
    pairs: list[tuple[list[str], list[str]]] = []
    distances_by_category(DRAWN, REAL, {"x": lambda ours, theirs: pairs.append((list(ours), list(theirs))) or 0.0})
    assert pairs == [
        (["0.png"], ["animals/1.jpg", "animals/2.jpg"]),
        (["1.png"], ["food/3.jpg"]),
        (list(DRAWN), list(REAL)),
    ]


def test_a_category_of_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match="Category food has only real images"):
        distances_by_category({"0.png": "animals"}, REAL, {})
    with pytest.raises(ValueError, match="got none"):
        distances_by_category({}, REAL, {})
