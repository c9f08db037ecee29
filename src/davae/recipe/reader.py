"""YAML text as plain values, read by the types of the fields that it is for.

The type decides what a scalar is: a text field has the words as they are written (a date, `no`, 007), anything else
is read as YAML 1.2, where 1e-3 is a number and 010 is ten. What no recipe needs is refused before it can cost
anything: tags, a value that contains itself, aliases that grow, great depth, keys that stand twice.
"""

import re
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from davae.core.config import hints_of, options_of, section_of
from davae.recipe.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 20_000
_NULLS = ("", "~", "null", "Null", "NULL")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_WHOLE = re.compile(r"[-+]?\d+(_\d+)*", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_MOST_DIGITS = 400
"""Of a number; what is longer stays a text, and is refused as one."""


class _Loader(yaml.SafeLoader):
    """Composes nodes alone; all scalars stay texts."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - of PyYAML
    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None:
            problem = f"a recipe has no tags; got {tag!r}. Leave it out; quotes make a text of anything"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} sections or lists lie in each other"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def read_file(path: Path) -> str:
    """Text of a recipe.

    Raises:
        RecipeError: it is too large to be a recipe, or no UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path} is no recipe: it has more than {MAX_BYTES:,} bytes. Give another file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from error


def read_yaml(text: str, hint: Any, where: str) -> Any:
    """One YAML document as plain values.

    Args:
        text: of the document.
        hint: annotation of what it is for, a dataclass or that of a field; `Any` where nobody knows.
        where: how errors name it.

    Raises:
        RecipeError: it is not YAML, or such as no recipe needs; the text says the line.
    """
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _Reader().value(node, hint)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None or "\n" not in text.strip() else f", line {mark.line + 1}"
        if type(error) is yaml.MarkedYAMLError:  # our own
            raise RecipeError(f"{where}{line}: {error.problem}.") from error
        raise RecipeError(f"{where} is not valid YAML{line}: {_explain(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {str(error).splitlines()[0]}") from error


def read_setting(text: str, hint: Any, where: str) -> Any:
    """What a command line gives for a key. A text field has the text as it is; null is none, where that is allowed.

    Raises:
        RecipeError: it is not YAML, of any other field.
    """
    if is_text(hint):
        if text == "null" and NoneType in options_of(hint):
            return None
        return _unquoted(text)
    if _is_texts(hint) and text != "null" and not (text.startswith("[") and text.endswith("]")):
        return [_unquoted(text)]
    try:
        return read_yaml(text, hint, f"{where}: {text!r}")
    except RecipeError as error:
        if _is_texts(hint):
            raise RecipeError(f"{error} Put texts with ',', ':' or '#' in quotes.") from error
        raise


def is_text(hint: Any) -> bool:
    """Whether a field holds nothing but text, or null."""
    options = [option for option in options_of(hint) if option is not NoneType]
    return all(_is_text(option) for option in options)


def child_hint(hint: Any, key: str) -> Any:
    """Annotation of a key in what an annotation holds; Any where nobody knows."""
    section = section_of(hint)
    if section is None:
        return Any
    return hints_of(section).get(key, str if key == "from" else Any)


def _is_text(option: Any) -> bool:
    if get_origin(option) is Annotated:
        return get_args(option)[0] is str
    if get_origin(option) is Literal:
        return all(isinstance(choice, str) for choice in get_args(option))
    return option is str


def _is_texts(hint: Any) -> bool:
    return any(get_origin(option) is tuple and _is_text(get_args(option)[0]) for option in options_of(hint))


def _unquoted(text: str) -> str:
    """A text without the quotes of YAML around it."""
    if text[:1] not in ("'", '"'):
        return text
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError:
        return text
    return node.value if isinstance(node, ScalarNode) and node.end_mark.index == len(text) else text


class _Reader:
    """Values of nodes; what aliases repeat counts again."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[Node] = []

    def value(self, node: Node, hint: Any) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _refused(
                node, f"with its aliases this is more than {MAX_VALUES:,} values; write out what is needed"
            )
        if isinstance(node, ScalarNode):
            return _scalar(node, hint)
        if any(node is other for other in self._open):
            raise _refused(node, "this contains itself; write out what is needed")
        if len(self._open) >= MAX_DEPTH:
            raise _refused(node, f"more than {MAX_DEPTH} sections or lists lie in each other")
        self._open.append(node)
        try:
            return self._mapping(node, hint) if isinstance(node, MappingNode) else self._items(node, hint)
        finally:
            self._open.pop()

    def _items(self, node: Node, hint: Any) -> list[Any]:
        return [self.value(item, _item_hint(hint)) for item in node.value]

    def _mapping(self, node: MappingNode, hint: Any) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise _refused(key_node, "a key must be a word; got a list or a section")
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in lines:
                raise _refused(key_node, f"the key {key!r} stands twice, before in line {lines[key]}; keep one")
            lines[key] = line
            if key == "<<" and key_node.style is None:
                merged = self._merged(value_node, hint)
            else:
                own[key] = self.value(value_node, child_hint(hint, key))
        return merged | own

    def _merged(self, node: Node, hint: Any) -> dict[str, Any]:
        """Keys that `<<` takes over; of several sections the first one counts."""
        found: dict[str, Any] = {}
        for part in reversed(node.value) if isinstance(node, SequenceNode) else [node]:
            if not isinstance(part, MappingNode):
                raise _refused(part, "<< takes over a section")
            found |= self.value(part, hint)
        return found


def _item_hint(hint: Any) -> Any:
    for option in options_of(hint):
        if get_origin(option) is tuple:
            return get_args(option)[0]
    return Any


def _scalar(node: ScalarNode, hint: Any) -> Any:
    text: str = node.value
    if node.style is not None:  # in quotes, or a block of text
        return text
    if text in _NULLS:
        return None
    return text if is_text(hint) else _plain(text)


def _plain(text: str) -> Any:
    if text.lower() in (*_TRUE, *_FALSE):
        return text.lower() in _TRUE
    if len(text) > _MOST_DIGITS:
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if _NOT_FINITE.fullmatch(text) else text


def _refused(node: Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem)
    hint = ""
    if r"'\t'" in problem:
        hint = " Indent with spaces."
    elif "another document" in problem:
        hint = " Keep one recipe in a file."
    elif "alias" in problem or "cannot start any token" in problem or "mapping values" in problem:
        hint = " Put a text with such signs in quotes."
    return f"{problem}.{hint}"
