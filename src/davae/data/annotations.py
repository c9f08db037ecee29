"""What people write beside images: captions and labels, in JSON and in text files."""

from collections.abc import Mapping

from davae.data.errors import DataError

CAPTION_KEYS = ("text", "caption", "prompt")
"""Under which data sets keep a caption, the likeliest first."""


def parse_captions(entry: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Return the captions in a JSON annotation (() when it has none).

    Raises:
        DataError: One is not text. `where` says which file and line.
    """
    for key in CAPTION_KEYS:
        value = entry.get(key)
        if isinstance(value, str):
            return captions_of(value)
        if value is not None:
            raise DataError(f"cannot read {where}: got {key} {value!r}; allowed is text; correct the entry")
    return ()


def captions_of(text: str) -> tuple[str, ...]:
    """The caption in a text, without the blanks around it; () of a blank one."""
    caption = text.strip()
    return (caption,) if caption else ()


def parse_label(value: object, where: str) -> int | None:
    """Return the label in an annotation, a JSON value or the digits of a `.cls` member (None when it has none).

    Raises:
        DataError: It is not a whole number from 0 up. `where` says which file and line.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(
            f"cannot read {where}: got label {value!r}; allowed are whole numbers from 0 up; correct the entry"
        )
    return value


def read_text(data: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: It is another encoding. `where` says which file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {where}: got {error}; allowed is UTF-8; convert the file") from error
