"""Which images a number by category is of: those of each category, and all of them (MJHQ-30K's tables)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

OVERALL: Final = "overall"


@dataclass(frozen=True)
class Category:
    """Drawn and real images that are compared.

    Args:
        name: of the row.
        drawn: numbers of the drawn images, ascending.
        real: of the real ones.
    """

    name: str
    drawn: NDArray[np.intp]
    real: NDArray[np.intp]


def by_category(drawn: Sequence[str], real: Sequence[str]) -> list[Category]:
    """The categories in the order of their names, then `OVERALL`.

    Args:
        drawn: category of each drawn image.
        real: of each real one.

    Raises:
        ValueError: a category is on one side only, or there is none.
    """
    if not drawn or not real:
        raise ValueError("Numbers by category need drawn and real images; got none. Give both.")
    if alone := sorted({*drawn} ^ {*real}):
        side = "drawn" if alone[0] in drawn else "real"
        raise ValueError(
            f"Category {alone[0]} has only {side} images; every one needs both. Draw all prompts, or give the whole "
            f"reference."
        )
    ours, theirs = np.array(drawn), np.array(real)
    return [
        *(Category(name, np.flatnonzero(ours == name), np.flatnonzero(theirs == name)) for name in sorted({*real})),
        Category(OVERALL, np.arange(len(ours)), np.arange(len(theirs))),
    ]
