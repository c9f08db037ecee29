"""What people write beside images: captions and labels, in JSON, tables and text files."""

import csv
import io
import json
from collections.abc import Iterator, Mapping

from davae.core.text import is_text, lines
from davae.data.errors import DataError

CAPTION_KEYS = ("text", "caption", "prompt")
"""Under which data sets keep a caption, the likeliest first."""
_LIST_KEYS = ("texts", "captions", "prompts")
"""Under which they keep several."""
_DIGITS = 20  # of a label, fewer than these: long texts are slow to become numbers


def parse_captions(entry: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Return the captions in an annotation (() when it has none): a text, or a list of texts, each image's choice.

    Raises:
        DataError: One is not text. `where` says which file and line.
    """
    for key in (*CAPTION_KEYS, *_LIST_KEYS):
        value = entry.get(key)
        if value is None:
            continue
        found: list[str] = []
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str):
                raise DataError(
                    f"cannot read {where}: got {key} {_short(value)}; allowed is text, or a list of texts; correct "
                    f"the entry"
                )
            found += captions_of(text)
        return tuple(found)
    return ()


def captions_of(text: str) -> tuple[str, ...]:
    """The caption in a text, on one line and without the blanks around it; () of a blank one."""
    caption = " ".join(filter(None, map(str.strip, lines(text))))
    return (caption,) if caption else ()


def parse_label(value: object, where: str) -> int | None:
    """Return the label in an annotation, a JSON value or the digits of a `.cls` member (None when it has none).

    Raises:
        DataError: It is not a whole number from 0 up. `where` says which file and line.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < _DIGITS:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(
            f"cannot read {where}: got label {_short(value)}; allowed are whole numbers from 0 up; correct the entry"
        )
    return value


def parse_object(text: str, where: str) -> dict[str, object]:
    """Return a JSON object, see `parse_json`."""
    entry = parse_json(text, where, "a JSON object")
    if not isinstance(entry, dict):
        raise DataError(f"cannot read {where}: got {_short(entry)}; allowed is a JSON object; correct it")
    return entry


def parse_json(text: str, where: str, allowed: str = "JSON") -> object:
    """Return a JSON value.

    Raises:
        DataError: It is something else, nested too deep, or holds what is no Unicode text. `where` says which file
            and line, `allowed` what should be there.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {where}: got {error}; allowed is {allowed}; correct it") from error
    if "\\u" in text and not is_text(json.dumps(value, ensure_ascii=False)):
        raise DataError(
            f"cannot read {where}: got half of a surrogate pair, as in '\\ud83d' without what follows it; allowed is "
            f"Unicode text; correct it"
        )
    return value


def json_lines(text: str, file: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The objects of a text that has one a line, each with the words "FILE line N"; blank lines are passed over.

    Raises:
        DataError: A line is no JSON object.
    """
    for number, line in enumerate(lines(text), start=1):
        if line.strip():
            where = f"{file} line {number}"
            yield where, parse_object(line, where)


def table_rows(text: str, file: str, delimiter: str = ",") -> Iterator[tuple[str, dict[str, object]]]:
    """The rows of a table whose first line names the columns, each with the words "FILE line N".

    Cells may be quoted, and then hold line ends. Names of columns are taken in lower case.

    Raises:
        DataError: A row has more cells than there are columns, or the quoting is wrong.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for row in reader:
            where = f"{file} line {reader.line_num}"
            if columns is None:
                columns = [name.strip().lower() for name in row]
            elif len(row) > len(columns):
                raise DataError(
                    f"cannot read {where}: got {len(row)} cells; allowed are {len(columns)}, as the first line names "
                    f"them; put quotes around what holds {delimiter!r}"
                )
            elif any(cell.strip() for cell in row):
                yield where, {name: cell for name, cell in zip(columns, row, strict=False) if cell.strip()}
    except csv.Error as error:
        raise DataError(
            f"cannot read {file} line {reader.line_num}: got {error}; allowed are rows of a table; correct the quotes"
        ) from error


def read_text(data: bytes, where: str) -> str:
    """Decode UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: It is another encoding. `where` says which file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {where}: got {error}; allowed is UTF-8; convert the file") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
