"""Long columns of a set, held as arrays: a million ids or captions that are not a million objects.

Each is a `Sequence` that makes an object when it is asked for one, so that its readers need not know.
"""

import reprlib
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from davae.data.buckets import Size

T = TypeVar("T")


class Column(Sequence[T]):
    """What the columns share; equal to every sequence of the same entries."""

    @abstractmethod
    def _at(self, position: int) -> T:
        """The entry at a position from 0 to the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._at(position) for position in range(len(self))[index]]
        return self._at(range(len(self))[index])

    def __iter__(self) -> Iterator[T]:
        return map(self._at, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({reprlib.repr(self[:8])}, {len(self)} entries)"


class Texts(Column[str]):
    """Strings, one after the other in one block of UTF-8; names of files may hold bytes that are no text.

    Args:
        block: the bytes of all, uint8.
        ends: where each ends, int64 [N].
    """

    def __init__(self, block: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Strings as a column."""
        block, ends = bytearray(), array("q")
        for text in texts:
            block += text.encode(errors="surrogatepass")
            ends.append(len(block))
        return cls(np.frombuffer(block, np.uint8), np.frombuffer(ends, np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Texts"]) -> "Texts":
        """The strings of several columns."""
        return cls(
            concatenated([part.block for part in parts], np.uint8), _joined_ends([part.ends for part in parts])
        )

    def part(self, start: int, stop: int) -> "Texts":
        """Those from `start` to `stop`, without a copy of their bytes."""
        first, last = _start(self.ends, start), _start(self.ends, stop)
        return Texts(self.block[first:last], self.ends[start:stop] - first)

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each string."""
        block, start = self.block.tobytes(), 0
        for end in self.ends.tolist():
            yield block[start:end]
            start = end

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        return (encoded.decode(errors="surrogatepass") for encoded in self.encoded())

    def _at(self, position: int) -> str:
        start, end = _start(self.ends, position), self.ends[position]
        return self.block[start:end].tobytes().decode(errors="surrogatepass")


class TextLists(Column[tuple[str, ...]]):
    """Several strings an entry.

    Args:
        texts: of all entries.
        ends: where those of each end, int64 [N].
    """

    def __init__(self, texts: Texts, ends: NDArray[np.int64]) -> None:
        self.texts, self.ends = texts, ends

    @classmethod
    def of(cls, lists: Iterable[Sequence[str]]) -> "TextLists":
        """Lists of strings as a column."""
        lengths = array("q")

        def flat() -> Iterator[str]:
            for entry in lists:
                lengths.append(len(entry))
                yield from entry

        texts = Texts.of(flat())
        return cls(texts, np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["TextLists"]) -> "TextLists":
        """The entries of several columns."""
        return cls(Texts.joined([part.texts for part in parts]), _joined_ends([part.ends for part in parts]))

    def part(self, start: int, stop: int) -> "TextLists":
        """Those from `start` to `stop`."""
        first, last = _start(self.ends, start), _start(self.ends, stop)
        return TextLists(self.texts.part(first, last), self.ends[start:stop] - first)

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        texts, start = iter(self.texts), 0
        for end in self.ends.tolist():
            yield tuple(next(texts) for _ in range(end - start))
            start = end

    def _at(self, position: int) -> tuple[str, ...]:
        return tuple(self.texts[_start(self.ends, position) : int(self.ends[position])])


class Numbers(Column[int]):
    """Whole numbers, [N]."""

    def __init__(self, array: NDArray[np.integer]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def _at(self, position: int) -> int:
        return int(self.array[position])


class Sizes(Column[Size]):
    """(height, width), [N, 2]."""

    def __init__(self, array: NDArray[np.integer]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def _at(self, position: int) -> Size:
        height, width = self.array[position].tolist()
        return height, width


class Firsts(Column[str]):
    """The first string of each entry; "" of one that has none."""

    def __init__(self, lists: Sequence[tuple[str, ...]]) -> None:
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def _at(self, position: int) -> str:
        return next(iter(self.lists[position]), "")


class View(Column[T]):
    """Some entries of a sequence, without a copy of them; see `view`."""

    def __init__(self, values: Sequence[T], positions: NDArray[np.int64]) -> None:
        self.values, self.positions = values, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[T]:
        return map(self.values.__getitem__, self.positions.tolist())

    def _at(self, position: int) -> T:
        return self.values[int(self.positions[position])]


def view(values: Sequence[T], positions: NDArray[np.int64]) -> Sequence[T]:
    """The entries of a sequence at some positions, in their order."""
    if np.array_equal(positions, np.arange(len(values))):
        return values
    if isinstance(values, View):
        return View(values.values, values.positions[positions])
    return View(values, positions)


def array_of(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers [N] or sizes [N, 2] as an array."""
    if isinstance(values, View):
        return array_of(values.values)[values.positions]
    return values.array if isinstance(values, Numbers | Sizes) else np.asarray(values, np.int64)


def concatenated(parts: Sequence[NDArray[Any]], dtype: Any = np.int64) -> NDArray[Any]:
    """Arrays one after the other, none of them as well."""
    return np.concatenate([np.zeros(0, dtype), *parts], dtype=dtype)


def _start(ends: NDArray[np.int64], position: int) -> int:
    """Where the entry at a position begins."""
    return int(ends[position - 1]) if position else 0


def _joined_ends(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Ends counted over all parts."""
    firsts = accumulate((int(part[-1]) if len(part) else 0 for part in parts), initial=0)
    return concatenated([part + first for part, first in zip(parts, firsts, strict=False)])
