"""The rules of GenEval: from what a detector saw in an image to a verdict, as the official judge decides it.

Pure functions of boxes, scores and colours. Numbers are compared in float32, as the official judge does; where two
scores are equal the later detection comes first, which is what its sorting does in practice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from davae.evaluate.geneval.prompts import Item, Prompt
from davae.evaluate.geneval.words import COLORS, COUNTING

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, pixels; y points down."""
_ALIGNED: Final = 1e-3  # pixels; centres nearer than this stand in no relation
_DIRECTION: Final = 0.5  # part of an offset that makes a relation


@dataclass(frozen=True)
class Detection:
    """An object that a detector saw.

    Args:
        box: around it.
        score: how sure the detector is, in [0, 1].
    """

    box: Box
    score: float


Objects = Mapping[str, Sequence[Detection]]
"""Class -> what was seen of it, in any order."""
ColorOf = Callable[[str, int], str]
"""(class, number of the detection in its list) -> one of `COLORS`. Asked only for objects that the prompt colours."""


@dataclass(frozen=True)
class Thresholds:
    """The options of the official judge, with its defaults.

    Args:
        score: a detection counts above it.
        counting_score: takes its place in the counting task.
        max_objects: detections of a class that count, the surest ones.
        max_overlap: a detection that overlaps a surer one of its class by this much is dropped; 1 drops none.
        position: share of the sizes of two objects by which their centres may differ before they stand in a relation.
    """

    score: float = 0.3
    counting_score: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position: float = 0.1


OFFICIAL: Final = Thresholds()


@dataclass(frozen=True)
class Verdict:
    """Whether an image is what its prompt asks for, and each reason why not."""

    reasons: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Nothing speaks against it."""
        return not self.reasons


def judge(prompt: Prompt, objects: Objects, color_of: ColorOf, options: Thresholds = OFFICIAL) -> Verdict:
    """The verdict on an image."""
    counted = {name: kept(seen, prompt.task, options) for name, seen in objects.items()}
    reasons: list[str] = []
    groups: list[list[Box] | None] = []  # what was found of each item; None where it failed
    for item in prompt.include:
        taken = counted.get(item.name, [])[: item.count]
        boxes = [objects[item.name][number].box for number in taken]
        reason = (
            _missing(item, len(taken))
            or _wrong_color(item, [color_of(item.name, number) for number in taken] if item.color else [])
            or _wrong_place(item, boxes, groups, options)
        )
        groups.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for item in prompt.exclude:
        found = len(counted.get(item.name, []))
        reasons += [f"expected {item.name}<{item.count}, found {found}"] if found >= item.count else []
    return Verdict(tuple(reasons))


def kept(seen: Sequence[Detection], task: str, options: Thresholds = OFFICIAL) -> list[int]:
    """Numbers of the detections of a class that count, the surest first."""
    threshold = np.float32(options.counting_score if task == COUNTING else options.score)
    scores = np.array([item.score for item in seen], np.float32)
    surest = [int(number) for number in np.argsort(scores, kind="stable")[::-1] if scores[number] > threshold]
    surest = surest[: options.max_objects]
    if options.max_overlap >= 1:
        return surest
    apart: list[int] = []
    for number in surest:
        if all(overlap(seen[number].box, seen[other].box) < options.max_overlap for other in apart):
            apart.append(number)
    return apart


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose edges are pixels that belong to them."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(right - left + 1, 0) * max(bottom - top + 1, 0)

    common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - common
    return common / union if union else 0.0


def relations(a: Box, b: Box, threshold: float = OFFICIAL.position) -> list[str]:
    """Where `a` stands as seen from `b`: none, one or two of `RELATIONS`."""
    corners = np.array([a, b], np.float32).reshape(2, 2, 2)  # object, corner, axis
    offset = corners[0].mean(axis=0) - corners[1].mean(axis=0)
    sizes = np.abs(np.diff(corners, axis=1)).sum(axis=(0, 1))
    shrunk = np.maximum(np.abs(offset) - np.float32(threshold) * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shrunk) < _ALIGNED):
        return []
    x, y = shrunk / np.linalg.norm(offset)  # by the length of the whole offset
    held = {
        "above": y < -_DIRECTION,
        "below": y > _DIRECTION,
        "left of": x < -_DIRECTION,
        "right of": x > _DIRECTION,
    }
    return [relation for relation, holds in held.items() if holds]


def _missing(item: Item, found: int) -> str:
    return f"expected {item.name}>={item.count}, found {found}" if found < item.count else ""


def _wrong_color(item: Item, colors: Sequence[str]) -> str:
    """The reason against the colours of an item's objects; empty without one."""
    right = sum(color == item.color for color in colors)
    if item.color is None or right >= item.count:
        return ""
    found = ", ".join(f"{colors.count(color)} {color}" for color in COLORS if color in colors)
    return f"expected {item.color} {item.name}>={item.count}, found {right} {item.color}; and {found}"


def _wrong_place(
    item: Item, boxes: Sequence[Box], groups: Sequence[Sequence[Box] | None], options: Thresholds
) -> str:
    """The reason against the place of an item's objects, of the first pair that is wrong; empty without one."""
    if item.position is None:
        return ""
    relation, number = item.position
    targets = groups[number]
    if targets is None:
        return f"no target for {item.name} to be {relation}"
    for box in boxes:
        for target in targets:
            found = relations(box, target, options.position)
            if relation not in found:
                return f"expected {item.name} {relation} target, found {' and '.join(found)} target"
    return ""
