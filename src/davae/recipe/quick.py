"""A recipe scaled down to a trial: every stage, the same models, a minute or two, and no claims."""

from collections.abc import Iterator, Mapping
from typing import Any

from davae.caching.settings import CacheConfig, PromptsConfig
from davae.core.config import Config, hints_of
from davae.recipe.recipe import Recipe
from davae.recipe.sections import DataConfig, EvaluateConfig, FinetuneConfig, PreviewConfig, SampleConfig
from davae.train.objective import AdversarialConfig, PerceptualConfig, TokenizerConfig, VisionAlignConfig
from davae.train.settings import LoopConfig, OptimConfig

SUFFIX = "-quick"
"""Of the run's name: a trial never goes on in the folder of the real run."""
_STEPS = 16
_MOST: Mapping[type, Mapping[str, float]] = {
    LoopConfig: {
        "steps": _STEPS,
        "batch_size": 4,
        "accumulation": 1,
        "ema_decay": 0.8,
        "log_every": 4,
        "checkpoint_every": _STEPS,
    },
    OptimConfig: {"warmup_steps": 2},
    AdversarialConfig: {"start_step": _STEPS // 2 + 1},
    TokenizerConfig: {"calibration_images": 16},
    FinetuneConfig: {"detail_warmup_steps": 4},
    DataConfig: {"count": 64, "test_count": 8, "workers": 1},
    CacheConfig: {"batch_size": 4},
    PromptsConfig: {"batch_size": 4},
    PreviewConfig: {"every": _STEPS, "count": 2, "steps": 4},
    SampleConfig: {"count": 8, "steps": 4, "batch_size": 4},
    EvaluateConfig: {"reconstructions": 8, "speed_batch": 2, "batch_size": 4, "claims": False},
}
"""The most that a trial has of each setting, by the class that says it; a smaller one stays. Models, their sizes and
those of images are as the recipe has them."""


def scaled_down(recipe: Recipe) -> dict[str, Any]:
    """What a trial of a recipe changes in it, as a recipe would say it.

    Networks that would have to be fetched for their judgement alone, LPIPS without paths and vision foundation
    models, are left out.
    """
    changes = _changes(recipe)
    if not recipe.name.endswith(SUFFIX):
        changes["name"] = f"{recipe.name}{SUFFIX}"
    return changes


def _changes(config: Config) -> dict[str, Any]:
    most = {name: value for owner in type(config).__mro__ for name, value in _MOST.get(owner, {}).items()}
    found: dict[str, Any] = {}
    for name, value in _values(config):
        if isinstance(value, VisionAlignConfig) or (isinstance(value, PerceptualConfig) and value.vgg is None):
            found[name] = None
        elif isinstance(value, Config):
            inner = _changes(value)
            if inner:
                found[name] = inner
        elif name in most and value is not None and value > most[name]:
            found[name] = most[name]
    return found


def _values(config: Config) -> Iterator[tuple[str, Any]]:
    for name in hints_of(type(config)):
        yield name, getattr(config, name)
