"""Changes to a recipe before it is validated: other files laid over it, and single keys."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_origin

from davae.core.config import hints_of, options_of, section_of
from davae.recipe.errors import RecipeError
from davae.recipe.reader import child_hint, read_setting
from davae.recipe.recipe import Recipe


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, sections key by key. What is taken `from` another run is replaced as a whole."""
    result = copy.deepcopy(dict(values))
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, Mapping) and ("from" in before) == ("from" in value):
            result[key] = merged(before, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def merge_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` strings. The given mapping is left as it is.

    The type of a key says how c is read: as it is for a text, as YAML for anything else. In a key, `*` stands for any
    name and `**` for any number of sections; it takes every key that is in use, and must find one.

    Raises:
        RecipeError: one is malformed, or finds nothing.
    """
    result = copy.deepcopy(dict(values))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set takes KEY=VALUE, for example finetune.steps=2000; got {override!r}.")
        for name in _matching(result, key) if "*" in key else [key]:
            _set(result, name, text)
    return result


def _set(values: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    place, hint = values, Recipe
    for parent in parents:
        inner = place.get(parent)
        place[parent] = place = {} if inner is None else inner
        hint = child_hint(hint, parent)
        if not isinstance(place, dict):
            raise RecipeError(f"--set {key}: {parent!r} is not a section.")
    place[last] = read_setting(text, child_hint(hint, last), f"--set {key}")


def _matching(values: Mapping[str, Any], pattern: str) -> list[str]:
    steps = {"**.": r"(?:[^.]+\.)*", "**": r".*", "*": r"[^.]*"}
    parts = re.split(r"(\*\*\.|\*\*|\*)", pattern)
    expression = re.compile("".join(steps.get(part, re.escape(part)) for part in parts))
    found = [name for name in keys_in_use(Recipe, values) if expression.fullmatch(name)]
    if not found:
        raise RecipeError(
            f"--set {pattern}: no key of this recipe has such a name. 'davae run RECIPE --dry-run' shows those in "
            f"use, 'davae keys' all that there are."
        )
    return found


def keys_in_use(owner: Any, values: Mapping[str, Any], section: str = "") -> Iterator[str]:
    """Plain keys of a recipe and of every section that it has, by default or given."""
    hints = hints_of(owner)
    for field in fields(owner):
        if field.name in owner.WITHOUT_EFFECT:
            continue
        hint, given = hints[field.name], values.get(field.name)
        holds = section_of(hint)
        if holds is None:
            if field.name != "reuse":
                yield f"{section}{field.name}"
        elif any(get_origin(option) is tuple for option in options_of(hint)):
            continue
        elif isinstance(given, dict) and "from" not in given:
            yield from keys_in_use(holds, given, f"{section}{field.name}.")
        elif field.name not in values and field.default_factory is not MISSING:
            yield from keys_in_use(holds, {}, f"{section}{field.name}.")
