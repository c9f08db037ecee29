"""A recipe as YAML: read, changed, validated, written. Of the recipe, no other file imports pydantic."""

import copy
import difflib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from davae.core.config import hints_of, section_of, shown
from davae.recipe.changes import merge_overrides, merged
from davae.recipe.errors import RecipeError
from davae.recipe.find import find_recipe, run_folder
from davae.recipe.quick import scaled_down
from davae.recipe.reader import read_file, read_yaml
from davae.recipe.recipe import REUSABLE, Recipe, place_of

T = TypeVar("T")

NOT_INHERITED = ("start", "detail_warmup_steps")
"""Keys of `finetune` that `realism` does not take over: by then the weights are there and the detail is learned."""
_WORDS = {
    "missing": "is required",
    "unexpected_keyword_argument": "unknown key",
    "dataclass_type": "must be a section",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a section",
}
"""Kind of a problem as pydantic names it -> what people read."""


def load_recipe(
    named: str | Path,
    overrides: Sequence[str] = (),
    *,
    overlays: Sequence[str | Path | Mapping[str, Any]] = (),
    quick: bool = False,
) -> Recipe:
    """Find, read, change and validate a recipe.

    Args:
        named: a file, the folder of a run, or the name of a recipe that comes with the package. A run keeps the name
            of its folder.
        overrides: `a.b=c` strings, which come last and win; see `merge_overrides`.
        overlays: files of entries that are laid over the recipe, or the entries themselves, one after the other.
        quick: scale it down to a trial, see `recipe.quick`.

    Raises:
        RecipeError: it cannot be found or read, or is wrong; every problem is listed.
    """
    return parse_recipe(read_recipe(named, overrides, overlays=overlays, quick=quick), str(find_recipe(named)))


def read_recipe(
    named: str | Path,
    overrides: Sequence[str] = (),
    *,
    overlays: Sequence[str | Path | Mapping[str, Any]] = (),
    quick: bool = False,
) -> dict[str, Any]:
    """Likewise without the validation: the plain values, for who changes more of them and calls `parse_recipe`."""
    path, run = find_recipe(named), run_folder(named)
    values = _read(path)
    if run is not None:
        values["name"] = run.name
    for overlay in overlays:
        values = merged(values, overlay if isinstance(overlay, Mapping) else _read(_overlay(overlay)))
    if quick:
        recipe = parse_recipe(merge_overrides(values, overrides), str(path))
        values = merged(values, scaled_down(recipe))
    return merge_overrides(values, overrides)


def parse_recipe(values: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Validate a mapping.

    Raises:
        RecipeError: it is no recipe; every problem is listed under `name`.
    """
    sections, reuse = copy.deepcopy(dict(values)), {}
    for section in REUSABLE:
        place, key = place_of(sections, section)
        given = place.get(key)
        if isinstance(given, dict) and "from" in given:
            if len(given) > 1:
                raise RecipeError(
                    f"{name}: section {section} has both 'from' and its own settings; keep one of them."
                )
            if not isinstance(given["from"], str):
                raise RecipeError(f"{name}: {section}.from must name a folder; got {shown(given['from'])}.")
            reuse[section] = given["from"]
            del place[key]
    _inherit(sections)
    completed = _completed(Recipe, sections)
    return validated(Recipe, {**completed, **({"reuse": reuse} if reuse else {})}, f"{name} is not a valid recipe")


def validated(owner: type[T], values: Mapping[str, Any], verdict: str) -> T:
    """A data class of settings from plain values.

    Raises:
        RecipeError: they are not such; every problem is listed under `verdict`.
    """
    try:
        return cast(T, _adapter(cast(Hashable, owner)).validate_python(values))
    except ValidationError as error:
        problems = "\n".join(dict.fromkeys(f"  {_explain(problem, owner)}" for problem in error.errors()))
        raise RecipeError(f"{verdict}:\n{problems}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(_plain(recipe.as_dict()), sort_keys=False, allow_unicode=True)


@cache
def _adapter(owner: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(type[Any], owner))


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(read_file(path), Recipe, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping of sections; got {shown(values)}.")
    return values


def _overlay(path: str | Path) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise RecipeError(f"There is no file {path} to lay over the recipe.")
    return file


def _inherit(sections: dict[str, Any]) -> None:
    """Let the second fine-tuning have the settings of the first one, where it does not say otherwise."""
    first, second = sections.get("finetune"), sections.get("realism")
    if isinstance(first, dict) and isinstance(second, dict):
        sections["realism"] = merged({key: value for key, value in first.items() if key not in NOT_INHERITED}, second)


def _completed(owner: type, values: dict[str, Any]) -> dict[str, Any]:
    """Sections that are given in part have what their default says of the rest, where that is not their class's."""
    hints = hints_of(owner)
    for field in fields(owner):
        holds, given = section_of(hints[field.name]), values.get(field.name)
        if holds is None or not isinstance(given, dict):
            continue
        default = None if field.default_factory is MISSING else field.default_factory()
        values[field.name] = _completed(holds, own_defaults(default) | given)
    return values


def own_defaults(default: Any) -> dict[str, Any]:
    """What the default of a section says that is not the default of its class."""
    if not is_dataclass(default):
        return {}
    values = {
        field.name: getattr(default, field.name) for field in fields(default) if field.default_factory is MISSING
    }
    usual = {field.name: field.default for field in fields(default)}
    return {name: value for name, value in values.items() if value != usual[name]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(problem: Any, owner: type) -> str:
    where, kind = ".".join(str(part) for part in problem["loc"]), problem["type"]
    words = _WORDS.get(kind, problem["msg"])
    if kind == "value_error":  # our own, which say what was got
        return f"{where or owner.__name__.lower()}: {problem['ctx']['error']}"
    if kind == "missing":
        return f"{where}: {words}"
    if kind == "unexpected_keyword_argument":
        *parents, key = problem["loc"]
        known = _known_keys(owner, parents)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: {words}; {hint}"
    if kind == "literal_error":
        words = f"must be {problem['ctx']['expected']}"
    return f"{where or owner.__name__.lower()}: {words}; got {shown(problem['input'])}"


def _known_keys(owner: Any, parents: Sequence[Any]) -> list[str]:
    for parent in parents:
        owner = section_of(hints_of(owner).get(str(parent))) or owner
    return [one.name for one in fields(owner) if one.name != "reuse"]
