"""What a prompt of GenEval asks for, read from the lines of `evaluation_metadata.jsonl`."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from davae.data.annotations import json_lines, read_text
from davae.evaluate.geneval.words import CLASSES, COCO_NAMES, COLORS, RELATIONS, TASKS


@dataclass(frozen=True)
class Item:
    """Objects that are asked for, or of which there may not be as many.

    Args:
        name: class of the objects.
        count: of them.
        color: that each of them has; None leaves it open.
        position: (relation, number of the earlier item that they stand in it to; -1 is the one before); None leaves
            it open.
    """

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A line of the metadata.

    Args:
        text: what is drawn.
        task: one of `TASKS`.
        include: what has to be there.
        exclude: how many are too many.
    """

    text: str
    task: str
    include: tuple[Item, ...]
    exclude: tuple[Item, ...] = ()


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a metadata file, in its order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no prompt of GenEval, or there is none; the text names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no GenEval metadata at {path}. Correct the path.")
    lines = json_lines(read_text(path.read_bytes(), str(path)), str(path))
    prompts = [parse_prompt(entry, where) for where, entry in lines]
    if not prompts:
        raise ValueError(f"{path} holds no prompt; allowed is a JSON object a line. Take the published metadata.")
    return prompts


def parse_prompt(entry: Mapping[str, object], where: str) -> Prompt:
    """A prompt from the object of a line; `where` names the line in errors.

    Raises:
        ValueError: it is no prompt of GenEval.
    """
    task, text = entry.get("tag"), entry.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: prompt is {text!r}; allowed is text. Take the published metadata.")
    if task not in TASKS:
        raise ValueError(f"{where}: tag is {task!r}; allowed are {', '.join(TASKS)}. Correct it.")
    include, exclude = _items(entry, "include", where), _items(entry, "exclude", where)
    if not include and not exclude:
        raise ValueError(f"{where} asks for nothing: include and exclude are empty. Take the published metadata.")
    return Prompt(text, task, include, exclude)


def require_official(prompts: Iterable[Prompt]) -> None:
    """Refuse a set whose tasks are not as large as the published ones.

    Raises:
        ValueError: with what is missing.
    """
    found = Counter(prompt.task for prompt in prompts)
    short = [f"{task} has {found[task]} prompts of {count}" for task, count in TASKS.items() if found[task] != count]
    if short:
        raise ValueError(
            f"These are not the prompts of GenEval: {'; '.join(short)}. Draw the missing ones, or name the set that "
            f"was drawn by --prompts FILE."
        )


def require_same(found: Sequence[Prompt], wanted: Sequence[Prompt], names: Sequence[str], source: str) -> None:
    """Refuse prompts that are not those of a file; `names` say where each one was found, `source` names the file."""
    for number, (prompt, name) in enumerate(zip(found, names, strict=True)):
        if number >= len(wanted) or prompt != wanted[number]:
            expected = f"'{wanted[number].text}'" if number < len(wanted) else "no more prompts"
            raise ValueError(
                f"{name} is of the prompt '{prompt.text}'; prompt {number} of {source} is {expected}. "
                f"Give the file that the images were drawn from."
            )
    if len(found) < len(wanted):
        raise ValueError(
            f"Images of prompt {len(found)}, '{wanted[len(found)].text}', are missing: {source} has {len(wanted)} "
            f"prompts, images are there of {len(found)}. Draw the missing ones."
        )


def known(name: object, allowed: Sequence[str], what: str, where: str) -> str:
    """A word of a closed list; the error suggests the nearest."""
    if isinstance(name, str) and name in allowed:
        return name
    close = COCO_NAMES.get(str(name)) or next(iter(difflib.get_close_matches(str(name), allowed, n=1)), None)
    hint = f"Did you mean '{close}'?" if close else f"Allowed are {', '.join(allowed)}."
    raise ValueError(f"{where}: GenEval has no {what} {name!r}. {hint}")


def _items(entry: Mapping[str, object], key: str, where: str) -> tuple[Item, ...]:
    items = entry.get(key, [])
    if not isinstance(items, list):
        raise ValueError(f"{where}: {key} is {items!r}; allowed is a list of objects. Correct it.")
    return tuple(_item(item, number, f"{where}, {key} {number}") for number, item in enumerate(items))


def _item(entry: object, number: int, where: str) -> Item:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}; allowed is an object with class and count. Correct it.")
    count, color, position = entry.get("count"), entry.get("color"), entry.get("position")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"{where}: count is {count!r}; allowed are whole numbers from 0 up. Correct it.")
    return Item(
        known(entry.get("class"), CLASSES, "class", where),
        count,
        None if color is None else known(color, COLORS, "colour", where),
        None if position is None else _position(position, number, where),
    )


def _position(value: object, number: int, where: str) -> tuple[str, int]:
    match value:
        case [str(relation), int(target)] if not isinstance(target, bool) and -number <= target < number:
            return known(relation, RELATIONS, "relation", where), target
    raise ValueError(
        f"{where}: position is {value!r}; allowed is [relation, number of an earlier object]. Correct it."
    )
