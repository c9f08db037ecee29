"""A recipe as YAML: read, changed, validated, written. This is the only file that imports pydantic."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from davae.recipe.recipe import REUSABLE, Recipe, place_of

NOT_INHERITED = ("start", "detail_warmup_steps")
"""Keys of `finetune` that `realism` does not take over: by then the weights are there and the detail is learned."""


class RecipeError(ValueError):
    """A recipe that cannot be run, with every problem listed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e-3 is one, although it has no dot."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge `a.b=c` overrides into the YAML, and validate.

    Raises:
        RecipeError: the file cannot be read or the recipe is wrong; every problem is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path}. Give the path of a YAML file.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping of sections; got {type(values).__name__}.")
    return parse_recipe(merge_overrides(values, overrides), str(path))


def merge_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` strings; c is read as YAML. The given mapping is left as it is."""
    merged = copy.deepcopy(dict(values))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set takes KEY=VALUE, for example finetune.steps=2000; got {override!r}.")
        *parents, last = key.split(".")
        place = merged
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {key}: {parent!r} is not a section.")
        try:
            place[last] = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {key}: {text!r} is not valid YAML: {error}") from error
    return merged


def parse_recipe(values: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Validate a mapping."""
    sections, reuse = copy.deepcopy(dict(values)), {}
    for section in REUSABLE:
        place, key = place_of(sections, section)
        given = place.get(key)
        if isinstance(given, dict) and "from" in given:
            if len(given) > 1:
                raise RecipeError(
                    f"{name}: section {section} has both 'from' and its own settings; keep one of them."
                )
            reuse[section] = str(given["from"])
            del place[key]
    _inherit(sections)
    try:
        return TypeAdapter(Recipe).validate_python({**sections, **({"reuse": reuse} if reuse else {})})
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise RecipeError(f"{name} is not a valid recipe:\n{problems}") from error


def _inherit(sections: dict[str, Any]) -> None:
    """Let the second fine-tuning have the settings of the first one, where it does not say otherwise."""
    first, second = sections.get("finetune"), sections.get("realism")
    if isinstance(first, dict) and isinstance(second, dict):
        sections["realism"] = {key: value for key, value in first.items() if key not in NOT_INHERITED} | second


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(_plain(recipe.as_dict()), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        *parents, key = problem["loc"]
        known = _known_keys(parents)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, (dict, list)) or "ArgsKwargs" in type(given).__name__ else f" (got {given!r})"
    return f"{where or 'recipe'}: {message}{shown}"


def _known_keys(parents: Sequence[Any]) -> list[str]:
    owner: Any = Recipe
    for parent in parents:
        hint = get_type_hints(owner).get(str(parent))
        options = (hint, *get_args(hint))  # of X | None and of tuple[X, ...] as well
        owner = next((option for option in options if is_dataclass(option)), owner)
    return [one.name for one in fields(owner) if one.name != "reuse"]
