"""Owner of state files: JSON that says what stands on disk, whole or not at all, and checked when it is read.

A shape is a data class, or another type that pydantic knows: it says which keys a file must have, and of which types.
"""

import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from davae.core.files import write_text

Shape = TypeVar("Shape")


class StateError(ValueError):
    """A state file is damaged, or of something else."""


def write_json(path: Path, value: object, indent: int | None = None, sort_keys: bool = False) -> None:
    """A JSON file, whole or not at all.

    Raises:
        ValueError: a number is not finite; JSON has none.
        TypeError: a value has no place in JSON.
    """
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=False) + "\n")


def read_json(path: Path, shape: type[Shape], remedy: str) -> Shape:
    """The contents of a JSON file, checked.

    Args:
        path: of the file.
        shape: of its contents; keys that it does not have are passed over.
        remedy: what to do about a damaged file, a sentence.

    Raises:
        FileNotFoundError: there is no file.
        StateError: it is no JSON, or has another shape.
    """
    try:
        # Not by pydantic: names of files may hold bytes that are no text, which it refuses here.
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, nested without end
        raise StateError(f"{path} is damaged: {error or 'it is empty'}. {remedy}") from error
    return parse_json(path, content, shape, remedy)


def parse_json(path: Path, content: object, shape: type[Shape], remedy: str) -> Shape:
    """Likewise of what was read from `path` before, as JSON values."""
    try:
        return _adapter(cast(Hashable, shape)).validate_python(content)
    except ValidationError as error:
        raise StateError(f"{path} is damaged: {_reason(error)}. {remedy}") from error


def found_json(path: Path, shape: type[Shape]) -> Shape | None:
    """The contents of a JSON file that can be made again; None where it is missing or damaged."""
    try:
        return read_json(path, shape, "")
    except (StateError, FileNotFoundError):
        return None


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    got = "" if first["type"] == "missing" else f"; got {str(first['input'])[:40]!r}"
    return f"{where}: {first['msg']}{got}" if where else f"{first['msg']}{got}"


@lru_cache(maxsize=32)
def _adapter(shape: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], shape))
