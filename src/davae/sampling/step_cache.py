"""Step caches: drawing with fewer of the transformer's blocks, by diffusers' cache hooks.

Neighbouring denoising steps compute nearly the same, so a step may take blocks from the one before it. The image
changes a little; how much, and what it saves, is for `benchmarks/step_cache.py` to say of a trained model.

FLUX.1's transformer has diffusers' `enable_cache`. SD3's has not, and its pipeline never says where a drawing begins,
so this file does both for it. It also goes around what stops two hooks of diffusers 0.42: SD3's last block returns
no text stream (None), on which the first-block cache and TaylorSeer's lite mode fail, so that block is not hooked.

Of the other hooks, MagCache runs on SD3 but needs magnitudes measured for each model and number of steps; FasterCache
runs if `pooled_projections` is named among its inputs, but takes every batch for two halves, which a guidance
interval breaks; SeaCache does nothing without a sigma from the pipeline.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.hooks.pyramid_attention_broadcast import (
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

_HOOK = "davae_step_cache"
_FEWEST_BLOCKS = 3  # the first, one to leave out, the last
_ATTENTION_RANGE = (100, 800)  # timesteps in which attention is passed on: the beginning and the end are computed


@dataclass(frozen=True)
class StepCache:
    """A kind of cache and what its one number means."""

    meaning: str
    default: float
    least: float
    is_whole: bool
    apply: Callable[[Any, float, "_Drawing"], None]
    """(SD3's transformer, number, drawing) -> hooks on its parts."""
    config: Callable[[Any, float], Any]
    """(pipeline, number) -> diffusers' config, for transformers with `enable_cache`."""


def enable_step_cache(pipe: Any, kind: str, value: float | None = None) -> None:
    """Draw with a step cache from now on. `pipe` itself may be called as before, any number of times.

    first-block: the first block is always computed; where its residual changed by less than `value` (relative, mean
        over the batch: the cache makes an image depend on its batch), the other blocks repeat theirs.
    taylorseer: every `value`-th step is computed, the prediction between is extrapolated (Liu et al. 2025).
    pyramid: attention is computed every `value`-th step in the middle of the schedule (Zhao et al. 2024).

    Args:
        pipe: a pipeline over SD3's or FLUX.1's transformer, upgraded or not.
        kind: one of `STEP_CACHES`.
        value: its number; None takes the default.

    Raises:
        ValueError: the kind, the number or the transformer cannot be used, or a cache is on already.
    """
    if kind not in STEP_CACHES:
        raise ValueError(f"There is no step cache {kind!r}; allowed are {', '.join(STEP_CACHES)}.")
    cache, transformer = STEP_CACHES[kind], pipe.transformer
    number = cache.default if value is None else value
    if number < cache.least or (cache.is_whole and number != int(number)):
        raise ValueError(f"Step cache {kind} needs {cache.meaning} of at least {cache.least}; got {number}.")
    if is_step_cached(pipe):
        raise ValueError(f"Cannot enable step cache {kind}: one is on already. Call disable_step_cache(pipe) first.")
    if isinstance(transformer, CacheMixin):
        transformer.enable_cache(cache.config(pipe, number))
        return
    if type(transformer).__name__ != "SD3Transformer2DModel":
        raise ValueError(
            f"No step cache is known for a {type(transformer).__name__}; known are SD3Transformer2DModel and "
            f"FluxTransformer2DModel. Draw without one."
        )
    drawing, before = _Drawing(), _hooks(transformer)
    cache.apply(transformer, number, drawing)
    drawing.hooks = _hooks(transformer) - before
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(drawing, _HOOK)
    registry.invalidate_child_registries_cache()


def disable_step_cache(pipe: Any) -> None:
    """Draw every step in full again, and free what the cache held. Does nothing where no cache is on."""
    transformer = pipe.transformer
    if isinstance(transformer, CacheMixin):
        if transformer.is_cache_enabled:
            transformer.disable_cache()
        return
    drawing = _drawing_of(transformer)
    if drawing is None:
        return
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.remove_hook(_HOOK, recurse=False)
    for path, name in drawing.hooks:
        HookRegistry.check_if_exists_or_initialize(transformer.get_submodule(path)).remove_hook(name, recurse=False)
    registry.invalidate_child_registries_cache()


def is_step_cached(pipe: Any) -> bool:
    """Whether a cache of this file is on."""
    if isinstance(pipe.transformer, CacheMixin):
        return pipe.transformer.is_cache_enabled
    return _drawing_of(pipe.transformer) is not None


class _Drawing(ModelHook):
    """On SD3's transformer: tells the caches where they are, and clears them when another drawing begins.

    Another drawing has other text embeddings, or its time starts again. Turning guidance on or off makes other
    embeddings too, so that a cache never sees a batch of another size.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hooks: set[tuple[str, str]] = set()
        """(path of a part, name of a cache's hook on it)."""
        self.time = float("inf")
        """Of the present step, 1000 = noise."""
        self._text: Tensor | None = None

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Runs in place of the transformer's forward."""
        time, text = float(kwargs["timestep"].flatten()[0]), kwargs["encoder_hidden_states"]
        if text is not self._text or time >= self.time:
            HookRegistry.check_if_exists_or_initialize(module).reset_stateful_hooks()
        self.time, self._text = time, text
        # Guidance puts both halves into one batch: one context. The mixin's method asks nothing of its module.
        forward: Callable[..., Any] | None = self.fn_ref.original_forward
        assert forward is not None
        with CacheMixin.cache_context(module, "batch"):  # type: ignore[arg-type]
            return forward(*args, **kwargs)


def _drawing_of(transformer: nn.Module) -> _Drawing | None:
    """The hook on SD3's transformer while a cache is on."""
    hook = HookRegistry.check_if_exists_or_initialize(transformer).get_hook(_HOOK)
    return hook if isinstance(hook, _Drawing) else None


class _Trunk(nn.Module):
    """All blocks but the last, under the name by which diffusers' hooks find blocks."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(list(transformer.transformer_blocks)[:-1])


def _apply_first_block(transformer: Any, threshold: float, drawing: _Drawing) -> None:
    if len(transformer.transformer_blocks) < _FEWEST_BLOCKS:
        raise ValueError(
            f"Step cache first-block needs {_FEWEST_BLOCKS} blocks or more; got "
            f"{len(transformer.transformer_blocks)}. Take another kind."
        )
    apply_first_block_cache(_Trunk(transformer), FirstBlockCacheConfig(threshold=threshold))


def _apply_taylorseer(transformer: Any, interval: float, drawing: _Drawing) -> None:
    # As the lite mode: the head's output is extrapolated, and what leads to it gives zeros meanwhile.
    last = len(transformer.transformer_blocks) - 1
    blocks = "|".join(map(str, range(last)))
    idle = [rf"transformer_blocks\.({blocks})", rf"transformer_blocks\.{last}\.(attn|attn2|ff)"]
    apply_taylorseer_cache(
        transformer,
        TaylorSeerCacheConfig(
            cache_interval=int(interval),
            taylor_factors_dtype=torch.float32,
            cache_identifiers=["proj_out"],
            skip_predict_identifiers=idle,
        ),
    )


def _apply_pyramid(transformer: Any, every: float, drawing: _Drawing) -> None:
    apply_pyramid_attention_broadcast(transformer, _pyramid(every, lambda: drawing.time))


def _pyramid(every: float, timestep: Callable[[], Any]) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=int(every),
        spatial_attention_timestep_skip_range=_ATTENTION_RANGE,
        current_timestep_callback=timestep,
    )


def _hooks(transformer: nn.Module) -> set[tuple[str, str]]:
    """(path, name) of every hook on a part."""
    return {
        (path, name)
        for path, module in transformer.named_modules()
        if path and hasattr(module, "_diffusers_hook")
        for name in module._diffusers_hook.hooks
    }


STEP_CACHES = {
    "first-block": StepCache(
        meaning="a threshold",
        default=0.1,
        least=0.0,
        is_whole=False,
        apply=_apply_first_block,
        config=lambda pipe, value: FirstBlockCacheConfig(threshold=value),
    ),
    "taylorseer": StepCache(
        meaning="a whole number of steps",
        default=3,
        least=1,
        is_whole=True,
        apply=_apply_taylorseer,
        config=lambda pipe, value: TaylorSeerCacheConfig(
            cache_interval=int(value), taylor_factors_dtype=torch.float32, use_lite_mode=True
        ),
    ),
    "pyramid": StepCache(
        meaning="a whole number of steps",
        default=2,
        least=1,
        is_whole=True,
        apply=_apply_pyramid,
        config=lambda pipe, value: _pyramid(value, lambda: pipe.current_timestep),
    ),
}
"""Kinds of step caches by name."""


def parse_step_cache(text: str) -> tuple[str, float | None]:
    """(kind, number) of "kind" or "kind=number", as the command line takes them.

    Raises:
        ValueError: it is neither.
    """
    match = re.fullmatch(r"([a-z-]+)(?:=([0-9]+(?:\.[0-9]+)?))?", text)
    if match is None or match.group(1) not in STEP_CACHES:
        raise ValueError(f"There is no step cache {text!r}; allowed are {', '.join(STEP_CACHES)}, or KIND=NUMBER.")
    return match.group(1), None if match.group(2) is None else float(match.group(2))
