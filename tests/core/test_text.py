"""What ends a line, and names that are no text."""

import os

import pytest

from davae.core.text import is_text, lines, readable


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_end_lines(end: str) -> None:
    assert lines(f"a{end}{end}b{end}") == ["a", "", "b"]
    assert lines(f"a{end}b") == ["a", "b"]


@pytest.mark.parametrize("char", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
def test_nothing_else_does(char: str) -> None:
    assert lines(f"a{char}b\nc") == [f"a{char}b", "c"]


def test_no_text_has_no_lines() -> None:
    assert lines("") == []


def test_names_that_are_no_text_are_written_as_their_bytes() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert not is_text(name)
    assert readable(name) == r"caf\xe9.png"
    assert is_text(readable(name))
    assert readable("caf\u00e9.png") == "caf\u00e9.png"
