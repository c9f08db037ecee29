"""Columns are the sequences that they stand for, whatever is asked of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from davae.data.columns import Numbers, Sizes, TextLists, Texts, View, array_of, view

text = st.text(st.characters(exclude_categories=()), max_size=5)  # lone surrogates too
texts = st.lists(text, max_size=8)
lists = st.lists(st.lists(text, max_size=3).map(tuple), max_size=6)


@given(texts, texts, st.slices(8))
def test_texts_are_the_strings_that_they_were_made_of(one: list[str], two: list[str], some: slice) -> None:
    column = Texts.joined([Texts.of(one), Texts.of([]), Texts.of(two)])
    assert column == one + two
    assert column[some] == (one + two)[some]
    assert [column[index] for index in range(-len(column), len(column))] == 2 * (one + two)
    assert column.part(len(one), len(column)) == two
    assert pickle.loads(pickle.dumps(column)) == one + two


@given(lists, lists)
def test_lists_of_texts_are_those_that_they_were_made_of(
    one: list[tuple[str, ...]], two: list[tuple[str, ...]]
) -> None:
    column = TextLists.joined([TextLists.of(one), TextLists.of(two)])
    assert list(column) == [column[index] for index in range(len(column))] == one + two
    assert column.part(len(one), len(column)) == two


def test_views_show_what_they_stand_for_and_do_not_nest() -> None:
    names = Texts.of("abcdef")
    some = view(view(names, np.array([5, 3, 1, 0])), np.array([3, 1]))
    assert some == ["a", "d"]
    assert isinstance(some, View)
    assert some.values is names
    sizes = view(Sizes(np.array([[1, 2], [3, 4]])), np.array([1, 1]))
    assert (list(sizes), array_of(sizes).tolist()) == ([(3, 4)] * 2, [[3, 4]] * 2)
    labels = view(Numbers(np.array([7, 8])), np.array([1]))
    assert (list(labels), array_of(labels).tolist(), array_of([5, 6]).tolist()) == ([8], [8], [5, 6])


def test_a_column_is_not_what_differs_from_it() -> None:
    names = Texts.of(["a", "b"])
    assert names != ["a"]
    assert names != ["a", "c"]
    assert names != 3
    assert "a" in names
    with pytest.raises(IndexError):
        names[2]
    assert repr(names) == "Texts(['a', 'b'], 2 entries)"
