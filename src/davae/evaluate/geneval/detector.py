"""A judge of our own: Mask2Former finds the objects and CLIP names the colours that a prompt asks for.

Any detector will do that reports objects with class, box, score and mask; its detections are kept in the form of
`detections.py`, from which the verdicts are made.
"""

from collections.abc import Mapping
from typing import Any, Final

from davae.core.files import bytes_digest
from davae.data.decode import UnusableImage, decode_image
from davae.evaluate.geneval.colors import ColorClassifier
from davae.evaluate.geneval.detections import SeenImage, SeenObject
from davae.evaluate.geneval.images import PromptImage
from davae.evaluate.geneval.rules import Detection, judge
from davae.evaluate.geneval.words import CLASSES, COCO_NAMES
from davae.models.mask2former import Mask2Former, Segment

DEFAULT_DETECTOR: Final = "facebook/mask2former-swin-small-coco-instance"


class DetectorJudge:
    """Sees what is in an image.

    Args:
        detector: of the 80 classes of COCO, in their order.
        colors: names colours.

    Raises:
        ValueError: the detector knows other classes.
    """

    def __init__(self, detector: Mask2Former, colors: ColorClassifier) -> None:
        _require_classes(detector.labels)
        self._detector, self._colors = detector, colors

    @property
    def identity(self) -> dict[str, Any]:
        """What its detections depend on."""
        return {"name": "Mask2Former and CLIP", "detector": self._detector.identity, "colors": self._colors.identity}

    def look(self, image: PromptImage) -> SeenImage:
        """Everything that is seen in an image, with the colours of the objects that its prompt colours.

        Raises:
            ValueError: the image cannot be read.
        """
        content = image.read()
        try:
            picture = decode_image(content, image.name)
        except UnusableImage as error:
            raise ValueError(f"Cannot judge {image.name}: {error.reason}. Draw it again.") from error
        by_class: dict[str, list[Segment]] = {}
        for segment in self._detector(picture):
            by_class.setdefault(CLASSES[segment.label], []).append(segment)
        named: dict[tuple[str, int], str] = {}

        def color_of(name: str, number: int) -> str:
            segment = by_class[name][number]
            return named.setdefault((name, number), self._colors(picture, name, segment.box, segment.mask))

        judge(image.prompt, _detections(by_class), color_of)
        objects = tuple(
            SeenObject(name, Detection(segment.box, segment.score), named.get((name, number)))
            for name, found in by_class.items()
            for number, segment in enumerate(found)
        )
        return SeenImage(image.name, objects, bytes_digest(content).hex())


def _detections(by_class: Mapping[str, list[Segment]]) -> dict[str, list[Detection]]:
    return {name: [Detection(item.box, item.score) for item in found] for name, found in by_class.items()}


def _require_classes(labels: list[str]) -> None:
    """Refuse a detector of other classes. Exports spell some in their own way, so only known names are compared."""
    names = [COCO_NAMES.get(label, label) for label in labels]
    wrong = [
        f"{name} is number {number}"
        for number, name in enumerate(names[: len(CLASSES)])
        if name in CLASSES and name != CLASSES[number]
    ]
    if len(names) != len(CLASSES) or wrong:
        raise ValueError(
            f"GenEval needs a detector of the {len(CLASSES)} classes of COCO in their order; got {len(names)} classes"
            f"{', where ' + wrong[0] if wrong else ''}. Give --detector one for instances, for example "
            f"{DEFAULT_DETECTOR}."
        )
