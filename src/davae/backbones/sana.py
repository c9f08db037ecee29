"""SANA: conv patch embedder (p = 1), [channels] head, linear attention, DC-AE latents (f32).

The 512 and 1024 px models have no positions. The pipelines' default size is 1024 px, whatever the config says, and
resolution binning picks sizes by `sample_size`: it would draw half the side and enlarge the image.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from davae.backbones.base import Backbone, Shapes, config_of, text_device, token_lengths
from davae.core.flow import to_scheduler_velocity, to_sigma

TRAIN_TIMESTEPS = 1000
"""The scheduler's timestep is 1000 sigma; the model takes it times its config's `timestep_scale`. The pipeline's DPM
solver rounds timesteps down, training keeps their fractions."""


def _instruction(pipe: Any) -> list[str]:
    """Lines that the pipeline's call puts before a prompt for the language model, but not before a negative one."""
    return signature(type(pipe).__call__).parameters["complex_human_instruction"].default


def _encode_text(pipe: Any, prompts: list[str], max_length: int) -> dict[str, Tensor]:
    """Gemma [B, max_length, d] and its mask [B, max_length]: the first token and the last ones, the prompt's own."""
    order = sorted(range(len(prompts)), key=lambda place: not prompts[place])  # the empty ones last
    num_full = sum(map(bool, prompts))
    groups = [(order[:num_full], _instruction(pipe)), (order[num_full:], None)]
    encoded = [
        pipe.encode_prompt(
            [prompts[place] for place in places],
            do_classifier_free_guidance=False,
            device=text_device(pipe),
            max_sequence_length=max_length,
            complex_human_instruction=instruction,
        )[:2]
        for places, instruction in groups
        if places
    ]
    embeds, masks = (torch.cat(tensors)[torch.tensor(order).argsort()] for tensors in zip(*encoded, strict=True))
    return {"prompt_embeds": embeds, "prompt_attention_mask": masks}


def _count_tokens(pipe: Any, prompts: list[str], max_length: int) -> dict[str, tuple[int, list[int]]]:
    instruction = "\n".join(_instruction(pipe))
    # The pipeline's own arithmetic: the instruction's tokens, and max_length less two for the prompt.
    limit = len(pipe.tokenizer.encode(instruction)) + max_length - 2
    texts = [instruction + prompt.lower().strip() for prompt in prompts]
    return {"tokenizer": (limit, token_lengths(pipe.tokenizer, texts))}


def _velocity(transformer: nn.Module, latent: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    predicted = transformer(
        latent,
        encoder_hidden_states=conditions["prompt_embeds"].to(latent.dtype),
        encoder_attention_mask=conditions["prompt_attention_mask"],
        timestep=TRAIN_TIMESTEPS * to_sigma(time) * config_of(transformer).timestep_scale,
        return_dict=False,
    )[0]
    return to_scheduler_velocity(predicted)


def _condition_shapes(config: Any, max_length: int) -> Shapes:
    return {
        "prompt_embeds": ((max_length, config.caption_channels), torch.float32),
        "prompt_attention_mask": ((max_length,), torch.int64),
    }


SANA = Backbone(
    class_name="SanaTransformer2DModel",
    convention="velocity",
    condition="text",
    conditioned_on="Gemma text: prompt, negative_prompt (prompt_embeds, prompt_attention_mask)",
    embedders=("patch_embed.proj",),
    head="proj_out",
    default_size="asked",
    # The second feed-forward layer is a 1x1 conv.
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.conv_point", "time_embed.linear"),
    pipelines=("SanaPipeline",),
    takes_negative=True,
    call_with={"use_resolution_binning": False},
    velocity=_velocity,
    condition_shapes=_condition_shapes,
    text_parts=("text_encoder", "tokenizer"),
    encode_text=_encode_text,
    count_tokens=_count_tokens,
    call_with_embeddings={"negative_prompt": None},  # its default, an empty text, may not stand beside embeddings
)
