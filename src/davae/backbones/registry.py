"""The known families of transformers by class name."""

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


def backbone_of(transformer: object) -> Backbone:
    """The family of a transformer.

    Raises:
        ValueError: its class is unknown.
    """
    return backbone_named(type(transformer).__name__)


def backbone_named(class_name: str) -> Backbone:
    """The family of a class of transformers by its name, as configs store it.

    Raises:
        ValueError: the class is unknown.
    """
    if class_name not in BACKBONES:
        raise ValueError(
            f"Cannot upgrade a {class_name}; known transformers: {', '.join(sorted(BACKBONES))}. "
            f"Add a file to davae.backbones for another one."
        )
    return BACKBONES[class_name]


def drawing_backbone(pipeline_name: str) -> Backbone:
    """The family that the samplers draw from with pipelines of this class.

    Raises:
        ValueError: they do not draw with it.
    """
    families = {pipeline: backbone for backbone in BACKBONES.values() for pipeline in backbone.pipelines}
    if pipeline_name not in families:
        raise ValueError(
            f"Cannot draw with a {pipeline_name}; allowed are {', '.join(sorted(families))}. Take a pipeline of one "
            f"of these classes, or call this one yourself."
        )
    return families[pipeline_name]


def text_pipelines() -> tuple[str, ...]:
    """Class names of the pipelines that the samplers draw prompts with."""
    return tuple(sorted(name for backbone in BACKBONES.values() if backbone.is_text for name in backbone.pipelines))


def trained_backbones() -> tuple[str, ...]:
    """Class names of the transformers that this library trains."""
    return tuple(sorted(name for name, backbone in BACKBONES.items() if backbone.is_trained))
