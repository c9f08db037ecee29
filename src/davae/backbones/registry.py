"""The known families of transformers by class name."""

from typing import Any

from davae.backbones.base import Backbone
from davae.backbones.dit import DIT
from davae.backbones.flux import FLUX
from davae.backbones.flux2 import FLUX2
from davae.backbones.hunyuan import HUNYUAN
from davae.backbones.lightningdit import LIGHTNINGDIT
from davae.backbones.pixart import PIXART
from davae.backbones.sana import SANA
from davae.backbones.sd3 import SD3
from davae.backbones.sd3_controlnet import SD3_CONTROLNET

BACKBONES = {
    backbone.class_name: backbone
    for backbone in (DIT, FLUX, FLUX2, HUNYUAN, LIGHTNINGDIT, PIXART, SANA, SD3, SD3_CONTROLNET)
}


def backbone_of(transformer: Any) -> Backbone:
    """The family of a transformer; an unknown class is an error that lists the known ones."""
    name = type(transformer).__name__
    if name not in BACKBONES:
        raise ValueError(
            f"Cannot upgrade a {name}; known transformers: {', '.join(sorted(BACKBONES))}. "
            f"Add a file to davae.backbones for another one."
        )
    return BACKBONES[name]
