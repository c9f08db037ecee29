"""MJHQ-30K as its tables have it: a distance in each category, and one over all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from davae.evaluate.results import Measurement

Distance = Callable[[Sequence[str], Sequence[str]], float]
"""(names of drawn images, names of real ones) -> distance."""
OVERALL: Final = "overall"
_GROUP: Final = "MJHQ-30K: Frechet distance"


def distances_by_category(
    drawn: Mapping[str, str], real: Mapping[str, str], distances: Mapping[str, Distance]
) -> list[Measurement]:
    """Distances of drawn to real images, category by category and over all.

    The published column mixes the protocols of pytorch-fid and of clean-fid, which differ by several points on the
    same images; so several distances are taken at once, each a column under its own name.

    Args:
        drawn: name -> category.
        real: name -> category.
        distances: name of the protocol -> distance.

    Raises:
        ValueError: a category is on one side only, or there is none.
    """
    if not drawn or not real:
        raise ValueError("Distances by category need drawn and real images; got none. Give both folders.")
    if alone := sorted({*drawn.values()} ^ {*real.values()}):
        side = "drawn" if alone[0] in drawn.values() else "real"
        raise ValueError(
            f"Category {alone[0]} has only {side} images; every one needs both. Draw all prompts, or give the whole "
            f"reference."
        )
    groups = {category: category for category in sorted({*real.values()})} | {OVERALL: None}
    measured = []
    for row, category in groups.items():
        ours, theirs = ([n for n, of in side.items() if category in (None, of)] for side in (drawn, real))
        measured += [
            Measurement(
                _GROUP,
                row,
                protocol,
                distance(ours, theirs),
                better="lower",
                protocol={"distance": protocol, "drawn": len(ours), "real": len(theirs)},
            )
            for protocol, distance in distances.items()
        ]
    return measured
