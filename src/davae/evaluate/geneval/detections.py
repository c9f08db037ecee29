"""What a detector saw, as a file that anybody's judge can write.

One JSON object a line. The first is `{"format": 1, "judge": {...}}`, where `judge` says in any words what saw them.
Every other is an image:

    {"image": "00000/samples/0000.png", "content": "5f...",
     "objects": [{"class": "bench", "box": [left, top, right, bottom], "score": 0.97, "color": "red"}]}

`image` is the path inside the folder that is judged and `box` is in pixels of the image. `color` is needed where the
prompt asks for the colour of that object. `content`, the hash of the image file, may be left out; it holds the line
to that image.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from davae.core.files import bytes_digest
from davae.data.annotations import json_lines, read_text
from davae.evaluate.geneval.images import PromptImage
from davae.evaluate.geneval.prompts import known
from davae.evaluate.geneval.rules import OFFICIAL, Detection, Thresholds, Verdict, judge
from davae.evaluate.geneval.words import CLASSES, COLORS

FORMAT: Final = 1


@dataclass(frozen=True)
class SeenObject:
    """A detection with its class, and its colour where somebody looked."""

    name: str
    detection: Detection
    color: str | None = None


@dataclass(frozen=True)
class SeenImage:
    """A line of the file.

    Args:
        image: path inside the folder that is judged.
        objects: that were seen.
        content: hash of the image file; None where nobody took it.
    """

    image: str
    objects: tuple[SeenObject, ...]
    content: str | None = None


@dataclass(frozen=True)
class Detections:
    """A file of detections.

    Args:
        judge: what saw them, as JSON values.
        images: name -> what was seen.
    """

    judge: dict[str, Any]
    images: dict[str, SeenImage]


def read_detections(path: Path) -> Detections:
    """Read a whole file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line is broken, names an unknown class or colour, or repeats an image; the text names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of detections {path}. Correct the path.")
    return parse_detections(read_text(path.read_bytes(), str(path)), str(path))


def parse_detections(text: str, file: str) -> Detections:
    """Read the text of a file, which errors name; see `read_detections`."""
    lines = json_lines(text, file)
    head = next((parse_head(entry, where) for where, entry in lines), None)
    if head is None:
        raise ValueError(f"{file} is empty; its first line says what saw the objects. Write the file again.")
    images: dict[str, SeenImage] = {}
    for where, entry in lines:
        seen = parse_seen(entry, where)
        if seen.image in images:
            raise ValueError(f"{where}: {seen.image} was there before. Keep one of the two lines.")
        images[seen.image] = seen
    return Detections(head, images)


def parse_head(entry: Mapping[str, object], where: str) -> dict[str, Any]:
    """What saw the objects, from the first line.

    Raises:
        ValueError: the line says something else.
    """
    judge_, version = entry.get("judge"), entry.get("format")
    if version != FORMAT or not isinstance(judge_, dict):
        raise ValueError(
            f"{where} is no head of a file of detections: got {_short(entry)}; allowed is "
            f'{{"format": {FORMAT}, "judge": {{"name": "..."}}}}. Write it first.'
        )
    return judge_


def parse_seen(entry: Mapping[str, object], where: str) -> SeenImage:
    """What was seen in an image, from its line.

    Raises:
        ValueError: the line is broken, or names an unknown class or colour.
    """
    image, objects, content = entry.get("image"), entry.get("objects"), entry.get("content")
    if not isinstance(image, str) or not isinstance(objects, list) or not isinstance(content, str | None):
        raise ValueError(
            f"{where} is no image: got {_short(entry)}; allowed are image (its path inside the folder), objects (a "
            f"list) and content (a hash). Correct it."
        )
    seen = (_object(item, f"{where}, object {number}") for number, item in enumerate(objects))
    return SeenImage(image, tuple(seen), content)


def head_line(judge_: Mapping[str, Any]) -> str:
    """The first line of a file."""
    return json.dumps({"format": FORMAT, "judge": judge_}, allow_nan=False) + "\n"


def seen_line(seen: SeenImage) -> str:
    """The line of an image."""
    objects = [
        {"class": item.name, "box": list(item.detection.box), "score": item.detection.score}
        | ({} if item.color is None else {"color": item.color})
        for item in seen.objects
    ]
    content = {} if seen.content is None else {"content": seen.content}
    return json.dumps({"image": seen.image, **content, "objects": objects}, allow_nan=False) + "\n"


def judge_all(
    images: Sequence[PromptImage], seen: Mapping[str, SeenImage], options: Thresholds = OFFICIAL
) -> list[Verdict]:
    """Verdicts on images, in their order.

    Raises:
        ValueError: an image was not looked at, is another one by now, or the colour of an object is wanted that
            nobody looked at; the text names the first.
    """
    absent = [image.name for image in images if image.name not in seen]
    if absent:
        raise ValueError(
            f"Detections of {len(absent)} of {len(images)} images are missing, {absent[0]} the first. Names are "
            f"paths inside the folder that is judged; add the missing lines."
        )
    return [judge_one(image, seen[image.name], options) for image in images]


def judge_one(image: PromptImage, seen: SeenImage, options: Thresholds = OFFICIAL) -> Verdict:
    """The verdict on an image."""
    if seen.content is not None and seen.content != bytes_digest(image.read()).hex():
        raise ValueError(f"Detections of {image.name} are of another image: its contents changed. Detect again.")
    by_class: dict[str, list[SeenObject]] = {}
    for item in seen.objects:
        by_class.setdefault(item.name, []).append(item)
    objects = {name: [item.detection for item in items] for name, items in by_class.items()}
    return judge(image.prompt, objects, _stated_color(by_class, image.name), options)


def _stated_color(objects: Mapping[str, Sequence[SeenObject]], image: str) -> Callable[[str, int], str]:
    def color_of(name: str, number: int) -> str:
        color = objects[name][number].color
        if color is None:
            raise ValueError(
                f"Detections of {image}: the prompt asks for the colour of a {name} that has none (score "
                f"{objects[name][number].detection.score:g}). Add its color."
            )
        return color

    return color_of


def _object(entry: object, where: str) -> SeenObject:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}; allowed is an object with class, box and score. Correct it.")
    box, score, color = entry.get("box"), entry.get("score"), entry.get("color")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{where}: box is {box!r}; allowed is [left, top, right, bottom] in pixels. Correct it.")
    if not _is_number(score) or not 0 <= score <= 1:
        raise ValueError(f"{where}: score is {score!r}; allowed are numbers from 0 to 1. Correct it.")
    left, top, right, bottom = map(float, box)
    return SeenObject(
        known(entry.get("class"), CLASSES, "class", where),
        Detection((left, top, right, bottom), float(score)),
        None if color is None else known(color, COLORS, "colour", where),
    )


def _short(value: object) -> str:
    return json.dumps(value)[:80]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
