"""Processes that measure together: what each of them does, and how all come to know it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Those that share a measurement. Item i belongs to process i mod `count`, and none is done twice.

    Args:
        rank: which one this is, from 0.
        count: how many. All of them see the same folders.
        gather: a list of each process -> all in one, in their order; returns when every process has called it.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = list

    def mine(self, items: Sequence[T]) -> Sequence[T]:
        """Those of this process."""
        return items[self.rank :: self.count]


ALONE = Processes()
"""One process that does everything."""
