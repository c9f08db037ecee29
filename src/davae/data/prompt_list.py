"""Lists of prompts in files, in the forms in which benchmarks and data sets publish them."""

import json
from collections.abc import Callable
from pathlib import Path

from davae.data.annotations import parse_captions, read_text
from davae.data.errors import DataError

_COLUMNS = ("prompt", "caption", "text")


def read_prompts(path: Path) -> list[str]:
    """Prompts in the order of a file.

    Args:
        path: `.txt` with a prompt a line, blank lines passed over; `.jsonl` with an object a line that has `prompt`,
            `text` or `caption` (GenEval's metadata, image folders' metadata); `.tsv` whose first line names a column
            Prompt, Text or Caption (PartiPrompts).

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is of another form, a line has no prompt, or there is none at all.
    """
    readers: dict[str, Callable[[Path, list[str]], list[str]]] = {".txt": _plain, ".jsonl": _objects, ".tsv": _table}
    if path.suffix not in readers:
        raise DataError(
            f"cannot read prompts from {path}: got a {path.suffix or 'nameless'} file; allowed are "
            f"{', '.join(readers)}; convert it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts {path}. Correct the path.")
    prompts = readers[path.suffix](path, read_text(path.read_bytes(), str(path)).splitlines())
    if not prompts:
        raise DataError(f"no prompt in {path}: allowed is one or more; fill it")
    return prompts


def _plain(path: Path, lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


def _objects(path: Path, lines: list[str]) -> list[str]:
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"cannot read {where}: got {error}; allowed is a JSON object; correct it") from error
        if not isinstance(entry, dict):
            raise DataError(f"cannot read {where}: got {line[:80]!r}; allowed is a JSON object; correct it")
        prompts.append(_required(next(iter(parse_captions(entry, where)), ""), where))
    return prompts


def _table(path: Path, lines: list[str]) -> list[str]:
    names = [name.strip().lower() for name in lines[0].split("\t")] if lines else []
    column = next((names.index(name) for name in _COLUMNS if name in names), None)
    if column is None:
        raise DataError(
            f"cannot read prompts from {path}: its first line names {', '.join(names) or 'nothing'}; allowed is a "
            f"column {', '.join(_COLUMNS)}; name it"
        )
    prompts = []
    for number, line in enumerate(lines[1:], 2):  # quotes are part of the text: PartiPrompts has them unescaped
        cells = line.split("\t")
        if line.strip():
            prompts.append(
                _required(cells[column].strip() if column < len(cells) else "", f"line {number} of {path}")
            )
    return prompts


def _required(prompt: str, where: str) -> str:
    if not prompt:
        raise DataError(f"no prompt in {where}: allowed is text that is not empty; correct it")
    return prompt
