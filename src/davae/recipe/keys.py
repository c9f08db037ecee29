"""What can be set in a recipe, read from its dataclasses: the sentence of a key is the string under its field."""

import ast
import dataclasses
import difflib
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, is_dataclass
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from davae.core.config import Place, Range, hints_of, marker_of, options_of, section_of
from davae.recipe.document import NOT_INHERITED, own_defaults
from davae.recipe.recipe import REUSABLE, Recipe
from davae.recipe.sections import FinetuneConfig

_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", dict: "mapping"}
_PLURALS = {float: "numbers", str: "texts"}
_NOT_WRITTEN = "reuse"
"""Of `Recipe`; a file says `SECTION: {from: FOLDER}` instead."""
_FOLLOWER, _LEADER = "realism", "finetune"
"""The second fine-tuning, which has the settings of the first one where it does not say otherwise."""
_FOLLOWED = {field.name for field in dataclasses.fields(FinetuneConfig)} - set(NOT_INHERITED)
_HEAD = """# Recipe keys

A recipe is one YAML file and one whole run. Here is all that can stand in it. `davae keys --markdown` writes this
page from the code; `davae keys PREFIX` prints a part of it, for example:

    davae keys finetune.optim

- `--set KEY=VALUE` takes the names as they stand here. A key that recipes do not have is an error, and so is a value
  out of range; both say what is allowed before anything runs.
- A section that is absent is not run, or is not in use. One that is there, even as `{}`, has the defaults below for
  what it leaves out.
- A text or a path is taken as it is written, `#`, `no` and 007 included; `~` at the start of a path is the home
  folder. Numbers are finite, and those of YAML 1.2: 1e-4, 0.5, 10_000.
- In `--set`, `*` stands for any name and `**` for any number of sections: `--set '**.steps=20'` sets every `steps` in
  use. `--overlay FILE` lays a file of entries over the recipe, `--quick` scales it down to a trial.
- `{from: FOLDER}` takes what another run made: FOLDER is that run's. For `pretrain.autoencoder` it is a saved
  autoencoder or pipeline, or its name on the hub.
- `realism` takes from `finetune` what it leaves out, key by key, so that only its own are listed.
  `realism.start` stays null, `realism.lora` as `finetune` has it.

"""


@dataclass(frozen=True)
class Key:
    """One entry of a recipe.

    Args:
        name: with the sections that it lies in, as `--set` takes it; a list of sections ends in `[]`.
        kind: its type, for people.
        default: as YAML; None where it must be given, "" of a section that is absent unless it is given.
        allowed: what may be chosen; "" where the type says it all.
        sentence: what it is.
        is_section: whether it holds other keys.
        follows: the key whose value it takes where it is not given; None where it has a default.
    """

    name: str
    kind: str
    default: str | None
    allowed: str
    sentence: str
    is_section: bool = False
    follows: str | None = None

    @property
    def facts(self) -> str:
        """Type, choices and default in one line."""
        allowed = f": {self.allowed}" if self.allowed else ""
        return f"{self.kind}{allowed}; {self._default}"

    @property
    def _default(self) -> str:
        if self.follows is not None:
            return f"default: that of {self.follows}"
        if self.default is None:
            return "required"
        return f"default: {self.default}" if self.default else "absent by default"


def describe_keys(prefix: str = "") -> list[Key]:
    """The keys of a recipe: a section, its plain keys, then the sections in it.

    Args:
        prefix: a key, or a section with all that it holds; "" takes every key.

    Raises:
        ValueError: there is no such key; the text names the nearest.
    """
    keys = list(_keys(Recipe, ""))
    asked = _without_brackets(prefix)
    found = [key for key in keys if not asked or f"{_without_brackets(key.name)}.".startswith(f"{asked}.")]
    if not found:
        raise ValueError(f"A recipe has no key {prefix!r}. {_hint(asked, [key.name for key in keys])}")
    return found


def markdown_page() -> str:
    """docs/recipe.md: every key, and how to read them."""
    return _HEAD + to_markdown(describe_keys())


def to_markdown(keys: Sequence[Key]) -> str:
    """Keys as Markdown: a heading and a table a section. What follows other keys is left out."""
    followers = {f"{key.name}." for key in keys if key.follows is not None}
    lines: list[str] = []
    in_table = False
    for key in keys:
        if any(f"{key.name}.".startswith(follower) for follower in followers):
            continue
        if key.is_section:
            level = "#" * min(2 + key.name.count("."), 4)
            lines += ["", f"{level} {key.name}", "", f"{key.sentence} *{key.facts[0].upper()}{key.facts[1:]}.*"]
            in_table = False
            continue
        if not in_table:
            lines += ["", "| key | type | default | what it is |", "|---|---|---|---|"]
            in_table = True
        kind = f"{key.kind}: {key.allowed}" if key.allowed else key.kind
        default = "required" if key.default is None else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {_cell(kind)} | {default} | {_cell(key.sentence)} |")
    return "\n".join(lines).strip() + "\n"


def _keys(owner: Any, section: str, usual: Any = None) -> Iterator[Key]:
    """Keys of a section; `usual` is its default, whose values are theirs."""
    hints = hints_of(owner)
    inner: list[tuple[Key, type, Any]] = []
    for field in dataclasses.fields(owner):
        if field.name in owner.WITHOUT_EFFECT or (owner is Recipe and field.name == _NOT_WRITTEN):
            continue
        hint = hints[field.name]
        value = _default(field) if usual is None else getattr(usual, field.name)
        key = _key(owner, field.name, value, hint, f"{section}{field.name}")
        holds = section_of(hint)
        if holds is None:
            yield key
        else:
            inner.append((key, holds, value))
    for key, holds, value in inner:
        yield key
        yield from _keys(holds, f"{key.name}.", value if isinstance(value, holds) else None)


def _key(owner: type, field: str, value: Any, hint: Any, name: str) -> Key:
    parent, _, last = name.rpartition(".")
    is_section = section_of(hint) is not None
    return Key(
        name=f"{name}[]" if is_section and get_origin(hint) is tuple else name,
        kind="section or {from: FOLDER}" if name in REUSABLE else _kind(hint),
        default=_written(value, hint),
        allowed=_allowed(hint),
        sentence=sentence_of(owner, field),
        is_section=is_section,
        follows=f"{_LEADER}.{last}" if parent == _FOLLOWER and last in _FOLLOWED else None,
    )


def sentence_of(owner: type, name: str) -> str:
    """The string under a field, in the class that defines it or the nearest base that says something."""
    for cls in owner.__mro__:
        if is_dataclass(cls) and name in _sentences(cls):
            return _sentences(cls)[name]
    return ""


@cache
def _sentences(cls: type) -> Mapping[str, str]:
    """Field -> the string under it, on one line, of what a class itself defines."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, follower in pairwise(definition.body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
            found[statement.target.id] = " ".join(str(follower.value.value).split())
    return found


def _kind(hint: Any) -> str:
    options = options_of(hint)
    names = dict.fromkeys(_name(option) for option in options if option is not NoneType)
    is_open = NoneType in options and section_of(hint) is None and "one of" not in names
    return " or ".join([*names, *(["null"] if is_open else [])])


def _name(option: Any) -> str:
    place = marker_of(option, Place)
    if place is not None:
        return "path or name" if place.or_name else "path"
    option = _bare(option)
    origin, arguments = get_origin(option), get_args(option)
    if origin is Literal:
        return "one of"
    if origin is tuple:
        is_open = arguments[-1] is Ellipsis
        items = "sections" if section_of(option) else _PLURALS[_bare(arguments[0])]
        return f"list of {items}" if is_open else f"list of {len(arguments)} {items}"
    return _TYPES.get(origin or option, "section")


def _allowed(hint: Any) -> str:
    """The choices or the range, where there is one."""
    options = options_of(hint)
    choices = [str(value) for option in options if get_origin(option) is Literal for value in get_args(option)]
    if choices:
        return ", ".join([*choices, *(["null"] if NoneType in options else [])])
    items = [get_args(option)[0] for option in options if get_origin(option) is tuple and not section_of(option)]
    limits = marker_of(items[0] if items else hint, Range)
    return "" if limits is None else str(limits)


def _bare(option: Any) -> Any:
    """A type without what marks it."""
    return get_args(option)[0] if get_origin(option) is Annotated else option


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _written(value: Any, hint: Any) -> str | None:
    """A default as YAML; None where there is none."""
    if value is MISSING:
        return None
    if section_of(hint) is None:
        return _yaml(value)
    if value is None:
        return ""
    return f"[{', '.join(map(_changes, value))}]" if isinstance(value, tuple) else _changes(value)


def _changes(section: Any) -> str:
    """A section as YAML, without what is its class's default."""
    return "{" + ", ".join(f"{name}: {_yaml(value)}" for name, value in own_defaults(section).items()) + "}"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _without_brackets(name: str) -> str:
    return name.replace("[]", "").strip(".")


def _hint(asked: str, names: Sequence[str]) -> str:
    """The nearest names: those that end as asked, or that are spelt nearly so."""
    end_of = {name: _without_brackets(name).rpartition(".")[2] for name in names}
    last = asked.rpartition(".")[2]
    nearest = difflib.get_close_matches(last, sorted(set(end_of.values())), n=1)
    near = difflib.get_close_matches(asked, names, n=1, cutoff=0.85) or sorted(
        (name for name in names if end_of[name] in nearest), key=len
    )
    return f"Did you mean {', '.join(near[:5])}?" if near else "'davae keys' lists all of them."
