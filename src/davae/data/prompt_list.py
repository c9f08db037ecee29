"""Lists of prompts in files, in the forms in which benchmarks and data sets publish them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from davae.core.text import lines
from davae.data.annotations import CAPTION_KEYS, json_lines, parse_captions, parse_json, read_text, table_rows
from davae.data.errors import DataError

_Prompts = Iterator[tuple[str, str]]
"""Where a prompt stands, and the prompt."""


def read_prompts(path: Path) -> list[str]:
    """Prompts in the order of a file.

    Args:
        path: `.txt` with a prompt a line, blank lines passed over; `.jsonl` with an object a line that has `prompt`,
            `text` or `caption` (GenEval's metadata, image folders' metadata); `.json` with a list of prompts or such
            objects, or an object from ids to them (MJHQ-30K's meta_data.json); `.csv`, and `.tsv` without quoting,
            whose first line names a column Prompt, Text or Caption (PartiPrompts).

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is of another form, a line has no prompt, or there is none at all.
    """
    readers: dict[str, Callable[[str, str], _Prompts]] = {
        ".txt": _plain,
        ".jsonl": _objects,
        ".json": _document,
        ".tsv": _unquoted_table,
        ".csv": _table,
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(
            f"cannot read prompts from {path}: got a {path.suffix or 'nameless'} file; allowed are "
            f"{', '.join(readers)}; convert it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts {path}. Correct the path.")
    prompts = []
    for where, prompt in readers[suffix](read_text(path.read_bytes(), str(path)), str(path)):
        if not prompt:
            raise DataError(f"no prompt in {where}: allowed is text that is not empty; correct it")
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"no prompt in {path}: allowed is one or more; fill it")
    return prompts


def _plain(text: str, file: str) -> _Prompts:
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            yield f"{file} line {number}", line.strip()


def _objects(text: str, file: str) -> _Prompts:
    for where, entry in json_lines(text, file):
        yield where, _first(parse_captions(entry, where))


def _document(text: str, file: str) -> _Prompts:
    entries = parse_json(text, file)
    if isinstance(entries, list):
        entries = dict(enumerate(entries, 1))
    if not isinstance(entries, dict):
        raise DataError(
            f"cannot read prompts from {file}: got {json.dumps(entries)[:80]}; allowed is a list of prompts, or an "
            f"object from ids to them; correct it"
        )
    for key, entry in entries.items():
        where = f"{file} entry {key}"
        yield where, _first(parse_captions(entry if isinstance(entry, dict) else {"prompt": entry}, where))


def _table(text: str, file: str) -> _Prompts:
    _require_column(text, file, ",")
    for where, row in table_rows(text, file):
        yield where, _first(parse_captions(row, where))


def _unquoted_table(text: str, file: str) -> _Prompts:
    _require_column(text, file, "\t")
    names, *rows = [line.split("\t") for line in lines(text)]
    columns = [name.strip().lower() for name in names]
    for number, cells in enumerate(rows, 2):  # quotes are part of the text: PartiPrompts has them unescaped
        if any(cell.strip() for cell in cells):
            where = f"{file} line {number}"
            yield where, _first(parse_captions(dict(zip(columns, cells, strict=False)), where))


def _require_column(text: str, file: str, delimiter: str) -> None:
    first = next(iter(lines(text)), "")
    names = [name.strip().strip('"').lower() for name in first.split(delimiter)]
    if not set(names).intersection(CAPTION_KEYS):
        raise DataError(
            f"cannot read prompts from {file}: its first line names {', '.join(filter(None, names)) or 'nothing'}; "
            f"allowed is a column {', '.join(CAPTION_KEYS)}; name it"
        )


def _first(captions: tuple[str, ...]) -> str:
    return captions[0] if captions else ""
