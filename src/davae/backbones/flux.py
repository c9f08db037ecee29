"""FLUX.1: the pipeline packs 2x2 latent positions, channel outermost (c * 4 + phase); linear embedder and head.

Rotary positions count tokens, and the timestep shift follows the number of tokens: both are those of the small
image. The pipelines' default size is 128 latent positions, whatever the config says.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from davae.backbones.base import Backbone, Shapes, config_of, text_device, token_lengths
from davae.core.flow import to_scheduler_velocity, to_sigma

TRAINING_GUIDANCE = 1.0
"""Guidance that FLUX.1-dev is told while it trains. The target is the data itself, unguided, so that guidance keeps
its meaning in drawing; diffusers' DreamBooth scripts for FLUX.1 recommend the same."""


def _encode_text(pipe: Any, prompts: list[str], max_length: int) -> dict[str, Tensor]:
    """T5 [B, max_length, d]; pooled CLIP [B, d]."""
    embeds, pooled, _ = pipe.encode_prompt(prompts, None, device=text_device(pipe), max_sequence_length=max_length)
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _count_tokens(pipe: Any, prompts: list[str], max_length: int) -> dict[str, tuple[int, list[int]]]:
    limits = {"tokenizer": pipe.tokenizer_max_length, "tokenizer_2": max_length}
    return {name: (limit, token_lengths(getattr(pipe, name), prompts)) for name, limit in limits.items()}


def _positions(height: int, width: int, like: Tensor) -> Tensor:
    """(0, row, column) of every token, [height * width, 3]."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    return torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)


def _velocity(transformer: nn.Module, latent: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    folded = pixel_unshuffle(latent, 2)  # [B, 4 K, h / 2, w / 2], feature 4 k + phase
    height, width = folded.shape[-2:]
    text = conditions["prompt_embeds"].to(latent.dtype)
    guided = config_of(transformer).guidance_embeds
    predicted = transformer(
        hidden_states=folded.flatten(2).transpose(1, 2),
        timestep=to_sigma(time),
        guidance=torch.full_like(time, TRAINING_GUIDANCE) if guided else None,
        encoder_hidden_states=text,
        pooled_projections=conditions["pooled_prompt_embeds"].to(latent.dtype),
        txt_ids=text.new_zeros(text.shape[1], 3),
        img_ids=_positions(height, width, latent),
        return_dict=False,
    )[0]
    return to_scheduler_velocity(pixel_shuffle(predicted.transpose(1, 2).unflatten(2, (height, width)), 2))


def _condition_shapes(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((max_length, config.joint_attention_dim), torch.float32),
        "pooled_prompt_embeds": ((config.pooled_projection_dim,), torch.float32),
    }


FLUX = Backbone(
    class_name="FluxTransformer2DModel",
    convention="velocity",
    condition="text",
    conditioned_on=(
        "T5 and pooled CLIP text: prompt (prompt_embeds, pooled_prompt_embeds); guidance_scale as an input"
    ),
    embedders=("x_embedder",),
    head="proj_out",
    packing=2,
    default_size="asked",
    # A single block's `proj_out` is the last layer of its attention and of its feed-forward part at once.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear", "proj_out", "norm.linear"),
    pipelines=("FluxPipeline",),
    takes_negative=False,  # guidance is an input of its model
    velocity=_velocity,
    condition_shapes=_condition_shapes,
    text_parts=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    encode_text=_encode_text,
    count_tokens=_count_tokens,
)
