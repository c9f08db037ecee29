"""The base of every configuration dataclass: what a setting may be is said once, in the annotation of its field.

One mechanism refuses what is not allowed, in a recipe and in Python: `Config` checks its fields as it is made, and
where pydantic reads a recipe it asks the same `Range`.
"""

import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

INT64_MAX = 2**63 - 1
_SHOWN = 60
"""Characters of a refused value that an error repeats."""


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may have: finite ones between two ends, and whole ones where the field is an integer.

    Args:
        low: lower end; None leaves it open.
        high: upper end, likewise. Integers fit into 64 bits in any case.
        above: whether `low` itself is left out.
        below: whether `high` itself is left out.
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if self.high is not None:
            return f"in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.below else ']'}"
        if self.low is None:
            return ""
        return f"{'more than' if self.above else 'at least'} {self.low}"

    def __contains__(self, value: float) -> bool:
        if not (abs(value) <= INT64_MAX if isinstance(value, int) else math.isfinite(value)):
            return False
        high_enough = self.low is None or (value > self.low if self.above else value >= self.low)
        return high_enough and (self.high is None or (value < self.high if self.below else value <= self.high))

    def check(self, value: Any, kind: type) -> None:
        """Refuse a value that is no number of a kind, int or float, in this range. True and False are none.

        Raises:
            ValueError: it is not; the text says what is allowed.
        """
        allowed = (int,) if kind is int else (int, float)
        is_number = isinstance(value, allowed) and not isinstance(value, bool)
        if not is_number or value not in self:
            noun = "whole number" if kind is int else "number" if self.high is not None else "finite number"
            comma = "" if self.high is not None or self.low is None else ","
            raise ValueError(f"must be a {noun}{comma} {self}".rstrip() + f"; got {shown(value)}")

    def read(self, given: Any, kind: type) -> Any:
        """A number as YAML has it, as one of a kind: 2e4 is whole, and 1 does for 1.0.

        Raises:
            ValueError: see `check`.
        """
        if kind is int and isinstance(given, float) and given.is_integer():
            given = int(given)
        self.check(given, kind)
        return kind(given)

    def __get_pydantic_core_schema__(self, kind: type, handler: object) -> Any:
        from pydantic_core.core_schema import no_info_plain_validator_function

        return no_info_plain_validator_function(lambda given: self.read(given, kind))


@dataclass(frozen=True)
class Place:
    """Marks a text that names a file or a folder: "~" at its start is the home folder.

    Args:
        or_name: whether it may also be a name, for example on the hub.
    """

    or_name: bool = False

    def expanded(self, text: str) -> str:
        """The text with the home folder in it.

        Raises:
            ValueError: it is empty, or no file has such a name.
        """
        if not text or "\0" in text:
            raise ValueError(f"must name a file or folder; got {shown(text)}")
        return os.path.expanduser(text)  # noqa: PTH111 - the text stays as it is written, "./" and "//" included

    def anchored(self, text: str) -> str:
        """The text as a path that holds from any working directory; a name stays one."""
        return text if self.or_name and not os.path.lexists(text) else os.path.abspath(text)  # noqa: PTH100


Number = Annotated[float, Range()]
Amount = Annotated[float, Range(0)]
"""A weight, a deviation, a margin, a scale of guidance."""
Positive = Annotated[float, Range(0, above=True)]
Share = Annotated[float, Range(0, 1, below=True)]
"""A decay or a dropout: what 1 would leave nothing of."""
Fraction = Annotated[float, Range(0, 1)]
Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Side = Annotated[int, Range(1, 65_536)]
"""Of an image, pixels."""
Seed = Whole
FilePath = Annotated[str, Place()]
PathOrName = Annotated[str, Place(or_name=True)]


class Config:
    """A frozen dataclass whose fields are checked by their annotations. Subclasses add what several fields decide.

    Raises:
        ValueError: a field is not what its annotation says.
    """

    # Unknown keys are an error wherever pydantic validates a subclass; by default they are not.
    __pydantic_config__ = {"extra": "forbid"}

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ()
    """Settings of a base class that mean nothing here: they keep their defaults, and people are not told of them."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            if field.name in self.WITHOUT_EFFECT and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"{field.name} has no effect here; got {shown(getattr(self, field.name))}. Leave it out"
                )
        for name, hint in hints_of(type(self)).items():
            value = getattr(self, name)
            try:
                settled = _settled(value, hint, Place.expanded)
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error
            if settled is not value:
                object.__setattr__(self, name, settled)

    def anchored(self) -> Self:
        """The same settings with every path absolute, for whoever reads them in another working directory."""
        return self.with_places(Place.anchored)

    def with_places(self, change: Callable[[Place, str], str]) -> Self:
        """The same settings with every path changed, those of its sections included."""
        changed = copy.copy(self)
        for name, hint in hints_of(type(self)).items():
            object.__setattr__(changed, name, _settled(getattr(self, name), hint, change))
        return changed


def hints_of(cls: Any) -> Mapping[str, Any]:
    """Field of a dataclass -> its annotation, with what marks it."""
    return _hints_of(cls)


@cache
def _hints_of(cls: Any) -> Mapping[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in fields(cls)}


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


Marker = TypeVar("Marker", Range, Place)


def marker_of(hint: Any, kind: type[Marker]) -> Marker | None:
    """What marks an annotation, or a member of it where it is a union."""
    for option in options_of(hint):
        for mark in getattr(option, "__metadata__", ()):
            if isinstance(mark, kind):
                return mark
    return None


def shown(value: object) -> str:
    """A value as errors repeat it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _settled(value: Any, hint: Any, place: Callable[[Place, str], str]) -> Any:
    """A value with `place` applied to its paths; refused where it is not what its annotation says."""
    options = options_of(hint)
    if value is None and NoneType in options:
        return None
    option = next(option for option in options if option is not NoneType)
    kind = option.__origin__ if get_origin(option) is Annotated else option
    if kind in (int, float):
        (marker_of(option, Range) or Range()).check(value, kind)
        return value
    if get_origin(kind) is Literal:
        if value not in get_args(kind) or isinstance(value, bool):
            raise ValueError(f"must be one of {', '.join(map(str, get_args(kind)))}; got {shown(value)}")
        return value
    if get_origin(kind) is tuple:
        return _settled_items(value, get_args(kind), place)
    if get_origin(kind) is dict:
        return _settled_mapping(value, get_args(kind)[1], place)
    kind = get_origin(kind) or kind  # of other generics the items are not looked at
    if not isinstance(value, kind):
        noun = {str: "text", bool: "true or false"}.get(kind, kind.__name__)
        raise ValueError(f"must be {noun}; got {shown(value)}")
    if isinstance(value, Config):
        return value if place is Place.expanded else value.with_places(place)
    marker = marker_of(option, Place)
    return value if marker is None else place(marker, value)


def _settled_items(value: Any, arguments: tuple[Any, ...], place: Callable[[Place, str], str]) -> Any:
    if not isinstance(value, tuple):
        raise ValueError(f"must be a tuple; got {shown(value)}")
    is_open = arguments[-1] is Ellipsis
    if not is_open and len(value) != len(arguments):
        raise ValueError(f"must have {len(arguments)} values; got {shown(value)}")
    hints = (arguments[0],) * len(value) if is_open else arguments
    settled = tuple(_settled(item, hint, place) for item, hint in zip(value, hints, strict=True))
    return value if settled == value else settled


def _settled_mapping(value: Any, hint: Any, place: Callable[[Place, str], str]) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping; got {shown(value)}")
    if hint is Any:
        _check_finite(value)
        return value
    return {key: _settled(item, hint, place) for key, item in value.items()}


def _check_finite(value: Any) -> None:
    """Refuse numbers of no annotation that are not finite."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_finite(item)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must hold finite numbers; got {value}")


def section_of(hint: Any) -> type | None:
    """The dataclass that an annotation holds, alone or in a list."""
    for option in options_of(hint):
        for part in (option, *get_args(option)):
            if isinstance(part, type) and is_dataclass(part):
                return part
    return None
