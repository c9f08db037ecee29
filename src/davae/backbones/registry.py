"""The known families of transformers by class name."""

from typing import Any

from davae.backbones.base import Backbone
from davae.backbones.lightningdit import LIGHTNINGDIT
from davae.backbones.sd3 import SD3

BACKBONES = {backbone.class_name: backbone for backbone in (LIGHTNINGDIT, SD3)}


def backbone_of(transformer: Any) -> Backbone:
    """The family of a transformer; an unknown class is an error that lists the known ones."""
    name = type(transformer).__name__
    if name not in BACKBONES:
        raise ValueError(
            f"Cannot upgrade a {name}; known transformers: {', '.join(sorted(BACKBONES))}. "
            f"Add a file to davae.backbones for another one."
        )
    return BACKBONES[name]
