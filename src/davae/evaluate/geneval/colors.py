"""The colour of an object, as the official judge asks CLIP for it."""

from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davae.evaluate.geneval.rules import Box
from davae.evaluate.geneval.words import COLORS
from davae.models.clip import Clip

DEFAULT_CLIP: Final = "openai/clip-vit-large-patch14"
TEMPLATES: Final = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
_AROUND: Final = "#999"  # what takes the place of everything that is not the object


class ColorClassifier:
    """Zero-shot classification of colours by CLIP."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._classifier = lru_cache(maxsize=None)(self._classifier_of)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its answers depend on."""
        return {**self._clip.identity, "object": f"its mask on {_AROUND}, cropped to its box"}

    def __call__(self, image: Image.Image, name: str, box: Box, mask: NDArray[np.bool_] | None) -> str:
        """The colour of an object of a class: one of `COLORS`."""
        embedding = self._clip.images([object_crop(image, box, mask)])
        return COLORS[int(color_logits(embedding, self._classifier(name))[0].argmax())]

    def _classifier_of(self, name: str) -> Tensor:
        texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
        return color_classifier(self._clip.texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES))))


def object_crop(image: Image.Image, box: Box, mask: NDArray[np.bool_] | None) -> Image.Image:
    """An object alone: what is not of it is grey, what is outside its box is cut off. Edges round half to even."""
    if mask is not None:
        image = Image.composite(image, Image.new("RGB", image.size, _AROUND), Image.fromarray(mask))
    left, top, right, bottom = map(round, box)
    return image.crop((left, top, right, bottom))


def color_classifier(texts: Tensor) -> Tensor:
    """Embeddings [colours, templates, D] -> one direction a colour, [colours, D]."""
    return F.normalize(F.normalize(texts, dim=-1).mean(dim=1), dim=-1)


def color_logits(images: Tensor, classifier: Tensor) -> Tensor:
    """Embeddings [N, D] -> 100 cosines with each colour, [N, colours]."""
    return 100 * F.normalize(images, dim=-1) @ classifier.T
