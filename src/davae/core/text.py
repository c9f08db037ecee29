"""Owner of text in files and names: what ends a line, and how a name that is no text is written."""

import re

_LINE_END = re.compile(r"\r\n|\n|\r")
_NO_TEXT = re.compile("[\ud800-\udfff]")


def lines(text: str) -> list[str]:
    """The lines of a text, without their ends; what follows the last end is a line where it is not empty.

    A line ends at a line feed, a carriage return, or both, and nowhere else: `str.splitlines` also ends one at form
    feeds and at separators of Unicode, which captions and JSON strings may hold.
    """
    found = _LINE_END.split(text)
    return found if found[-1] else found[:-1]


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: it has no lone surrogates."""
    return _NO_TEXT.search(value) is None


def readable(name: str) -> str:
    r"""A file's name as text: bytes that are no UTF-8, which Python hands over as surrogates, become "\xe9"."""
    return _NO_TEXT.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", name)
