"""davae: a pretrained diffusion transformer draws larger images with the same tokens (DA-VAE).

Public names are imported on first use, so that `import davae` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from davae._version import __version__ as __version__

if TYPE_CHECKING:
    from davae.backbones.finetuned import load_finetuned
    from davae.backbones.hunyuan_pipeline import HunyuanDiTPipelineDA
    from davae.backbones.upgrade import upgrade
    from davae.backbones.widening import widen
    from davae.core.layout import LatentLayout
    from davae.core.observer import Observer
    from davae.models.autoencoder import AutoencoderDA
    from davae.models.lightningdit import LightningDiT
    from davae.models.taef2 import AutoencoderTAEF2
    from davae.recipe import Recipe, load_recipe, parse_recipe
    from davae.sampling.detail_lag import DetailLagScheduler
    from davae.sampling.lightningdit_pipeline import LightningDiTPipeline
    from davae.stages import run_recipe

__all__ = [
    "AutoencoderDA",
    "AutoencoderTAEF2",
    "DetailLagScheduler",
    "HunyuanDiTPipelineDA",
    "LatentLayout",
    "LightningDiT",
    "LightningDiTPipeline",
    "Observer",
    "Recipe",
    "load_finetuned",
    "load_recipe",
    "parse_recipe",
    "run_recipe",
    "upgrade",
    "widen",
]

_HOMES = {
    "AutoencoderDA": "davae.models.autoencoder",
    "AutoencoderTAEF2": "davae.models.taef2",
    "DetailLagScheduler": "davae.sampling.detail_lag",
    "HunyuanDiTPipelineDA": "davae.backbones.hunyuan_pipeline",
    "LatentLayout": "davae.core.layout",
    "LightningDiT": "davae.models.lightningdit",
    "LightningDiTPipeline": "davae.sampling.lightningdit_pipeline",
    "Observer": "davae.core.observer",
    "Recipe": "davae.recipe",
    "load_finetuned": "davae.backbones.finetuned",
    "load_recipe": "davae.recipe",
    "parse_recipe": "davae.recipe",
    "run_recipe": "davae.stages",
    "upgrade": "davae.backbones.upgrade",
    "widen": "davae.backbones.widening",
    # diffusers finds the load methods of davae's classes through this module (see AutoencoderDA.__module__).
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'davae' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
