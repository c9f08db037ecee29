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
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from davae.recipe.document import NOT_INHERITED
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
- A section that is given takes the place of its default as a whole: `adversarial: {optim: {lr: 2.0e-4}}` has the
  `betas` in the table of `optim`, not those in its heading.
- `{from: FOLDER}` takes what another run made: FOLDER is that run's. For `pretrain.autoencoder` it is a saved
  autoencoder or pipeline, or its name on the hub.
- `realism` takes from `finetune` what it leaves out, so that only its own keys are listed. A section of it that is
  given takes the place of `finetune`'s as a whole. `realism.start` stays null, `realism.lora` as `finetune` has it.

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


def _keys(owner: type, section: str) -> Iterator[Key]:
    hints = get_type_hints(owner)
    inner: list[tuple[Key, type]] = []
    for field in dataclasses.fields(owner):
        if owner is Recipe and field.name == _NOT_WRITTEN:
            continue
        hint = hints[field.name]
        key = _key(owner, field, hint, f"{section}{field.name}")
        holds = _section_of(hint)
        if holds is None:
            yield key
        else:
            inner.append((key, holds))
    for key, holds in inner:
        yield key
        yield from _keys(holds, f"{key.name}.")


def _key(owner: type, field: "Field[Any]", hint: Any, name: str) -> Key:
    parent, _, last = name.rpartition(".")
    is_section = _section_of(hint) is not None
    return Key(
        name=f"{name}[]" if is_section and get_origin(hint) is tuple else name,
        kind="section or {from: FOLDER}" if name in REUSABLE else _kind(hint),
        default=_default(field, hint),
        allowed=_allowed(hint),
        sentence=sentence_of(owner, field.name),
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


def _section_of(hint: Any) -> type | None:
    """The dataclass that a key holds, alone or in a list."""
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and is_dataclass(option):
            return option
    return None


def _options(hint: Any) -> list[Any]:
    """The members of a union."""
    return list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]


def _kind(hint: Any) -> str:
    options = _options(hint)
    names = dict.fromkeys(_name(option) for option in options if option is not NoneType)
    is_open = NoneType in options and _section_of(hint) is None and not _allowed(hint)
    return " or ".join([*names, *(["null"] if is_open else [])])


def _name(option: Any) -> str:
    origin, arguments = get_origin(option), get_args(option)
    if origin is Literal:
        return "one of"
    if origin is tuple:
        is_open = arguments[-1] is Ellipsis
        items = "sections" if _section_of(option) else _PLURALS[arguments[0]]
        return f"list of {items}" if is_open else f"list of {len(arguments)} {items}"
    return _TYPES.get(origin or option, "section")


def _allowed(hint: Any) -> str:
    """The choices, where there are some."""
    options = _options(hint)
    choices = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    return ", ".join([*choices, *(["null"] if choices and NoneType in options else [])])


def _default(field: "Field[Any]", hint: Any) -> str | None:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is MISSING:
        return None
    if _section_of(hint) is None:
        return _yaml(value)
    if value is None:
        return ""
    return f"[{', '.join(map(_changes, value))}]" if isinstance(value, tuple) else _changes(value)


def _changes(section: Any) -> str:
    """A section as YAML, without what is its class's default."""
    changed = {
        field.name: getattr(section, field.name)
        for field in dataclasses.fields(section)
        if field.default_factory is MISSING and getattr(section, field.name) != field.default
    }
    return "{" + ", ".join(f"{name}: {_yaml(value)}" for name, value in changed.items()) + "}"


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
