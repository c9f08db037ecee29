"""SD3 and SD3.5: conv patch embedder (p = 2), [p*p, channels] head, position table saved as a buffer.

`sample_size` only sets the default size of an image: positions are cropped out of the middle of the saved table.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from davae.backbones.base import Backbone, Shapes, text_device, token_lengths
from davae.core.flow import to_scheduler_velocity, to_sigma

TRAIN_TIMESTEPS = 1000
"""The model takes timestep = 1000 sigma, as the scheduler counts it; fractions of a timestep are kept."""
CLIP_TOKENS = 77
"""Tokens of the CLIP text encoders, whatever the length asked of T5."""
_CLIP = ("tokenizer", "tokenizer_2")
_T5 = "tokenizer_3"


def _encode_text(pipe: Any, prompts: list[str], max_length: int) -> dict[str, Tensor]:
    """CLIP-L beside CLIP-G, then T5 behind them: [B, 77 + max_length, d]; pooled CLIP [B, d_1 + d_2].

    Where the pair has no T5, the pipeline takes zeros.
    """
    missing = [name for name in ("text_encoder", "text_encoder_2") if getattr(pipe, name) is None]
    if missing:
        raise ValueError(
            f"Cannot encode prompts: the pipeline has no {' and no '.join(missing)}; only text_encoder_3 (T5) may be "
            f"left out. Load the pair with its CLIP encoders."
        )
    embeds, _, pooled, _ = pipe.encode_prompt(
        prompts,
        None,
        None,
        device=text_device(pipe),
        do_classifier_free_guidance=False,
        max_sequence_length=max_length,
    )
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _count_tokens(pipe: Any, prompts: list[str], max_length: int) -> dict[str, tuple[int, list[int]]]:
    limits = dict.fromkeys(_CLIP, pipe.tokenizer_max_length)
    if pipe.text_encoder_3 is not None:
        limits[_T5] = max_length
    return {name: (limit, token_lengths(getattr(pipe, name), prompts)) for name, limit in limits.items()}


def _velocity(transformer: nn.Module, latent: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    predicted = transformer(
        hidden_states=latent,
        timestep=TRAIN_TIMESTEPS * to_sigma(time),
        encoder_hidden_states=conditions["prompt_embeds"].to(latent.dtype),
        pooled_projections=conditions["pooled_prompt_embeds"].to(latent.dtype),
        return_dict=False,
    )[0]
    return to_scheduler_velocity(predicted)


def _condition_shapes(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((CLIP_TOKENS + max_length, config.joint_attention_dim), torch.float32),
        "pooled_prompt_embeds": ((config.pooled_projection_dim,), torch.float32),
    }


SD3 = Backbone(
    class_name="SD3Transformer2DModel",
    convention="velocity",
    condition="text",
    conditioned_on="CLIP and T5 text: prompt, negative_prompt (prompt_embeds, pooled_prompt_embeds)",
    embedders=("pos_embed.proj",),
    head="proj_out",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    pipelines=("StableDiffusion3Pipeline",),
    takes_negative=True,
    takes_interval=True,
    refused={"StableDiffusion3InpaintPipeline": "it accepts latents of 16 channels only"},
    velocity=_velocity,
    condition_shapes=_condition_shapes,
    text_parts=("text_encoder", "text_encoder_2", "text_encoder_3", *_CLIP, _T5),
    encode_text=_encode_text,
    count_tokens=_count_tokens,
)
