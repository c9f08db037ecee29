"""Shapes of what a transformer is conditioned on, without a text encoder: for estimates and for random inputs."""

from collections.abc import Callable
from typing import Any

import torch

from davae.backbones.base import Backbone

CLIP_TOKENS = 77
"""Tokens of CLIP's text encoders."""

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name -> (shape of one sample, dtype), by the names that `Backbone.velocity` takes."""


def _label(config: Any, max_length: int) -> Shapes:
    return {"label": ((), torch.int64)}


def _sd3(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((CLIP_TOKENS + max_length, config.joint_attention_dim), torch.float32),
        "pooled_prompt_embeds": ((config.pooled_projection_dim,), torch.float32),
    }


def _flux(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((max_length, config.joint_attention_dim), torch.float32),
        "pooled_prompt_embeds": ((config.pooled_projection_dim,), torch.float32),
    }


def _sana(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((max_length, config.caption_channels), torch.float32),
        "prompt_attention_mask": ((max_length,), torch.int64),
    }


_KNOWN: dict[str, Callable[[Any, int], Shapes]] = {
    "LightningDiT": _label,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "SanaTransformer2DModel": _sana,
}


def conditioning_shapes(backbone: Backbone, config: Any, max_length: int) -> Shapes:
    """What one sample is conditioned on.

    Args:
        backbone: family of the transformer.
        config: of the transformer.
        max_length: tokens of the long text encoder, as `encode_text` takes it; classes have none.

    Raises:
        ValueError: the family is not trained by this library.
    """
    if backbone.class_name not in _KNOWN:
        raise ValueError(
            f"The conditioning of a {backbone.class_name} is not known; known are {', '.join(sorted(_KNOWN))}. "
            f"Take one of them."
        )
    return _KNOWN[backbone.class_name](config, max_length)
