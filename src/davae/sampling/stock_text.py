"""Drawing from stock text-to-image pipelines of diffusers: one seed an image, guidance in an interval.

The pipeline's own call does the work. This file gives it noise of our own, so that an image does not depend on its
batch and starts where the base model's starts, and changes the guidance between steps where the pipeline lets us.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from davae.backbones.registry import backbone_of, drawing_backbone, text_pipelines
from davae.core.flow import from_sigma
from davae.models.adapter import adapt
from davae.sampling.denoise import draw_noise
from davae.sampling.grid import Grid
from davae.sampling.guidance import in_interval
from davae.sampling.settings import WHOLE


@torch.no_grad()
def draw_encoded(
    pipe: Any,
    conditions: Mapping[str, Any],
    negatives: Mapping[str, Any] | None,
    seeds: Sequence[int],
    *,
    height: int,
    width: int,
    steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = WHOLE,
) -> Tensor:
    """Latents [B, K, h, w] of prompts that are encoded already; the pipeline may lack its text encoders.

    Args:
        pipe: one of `text_pipelines()`, upgraded or not.
        conditions: arguments of the pipeline's call, as `encode` or a prompt cache gives them, B rows each.
        negatives: the same of the negative prompt, B rows or one; None where `needs_negatives` says so.
        seeds: of the noise, one an image: the image is the same in any batch, but for rounding.
        height: of the images, pixels.
        width: of the images, pixels.
        steps: of the pipeline's scheduler.
        guidance_scale: 1 is off, and spares half the work (but not for FLUX.1, which takes it as an input).
        guidance_interval: native times (0 = noise, 1 = data) between which guidance is on; outside, the
            unconditional half is not computed (Kynkaanniemi et al. 2024).

    Raises:
        ValueError: the size, the guidance or the pipeline cannot be used; the text says why.
    """
    require_drawable(type(pipe).__name__, guidance_scale, guidance_interval)
    backbone, config = backbone_of(pipe.transformer), pipe.transformer.config
    size = Grid.of(backbone, config, adapt(pipe.vae).compression).latent_size(height, width)
    count = len(next(iter(conditions.values())))
    if count != len(seeds):
        raise ValueError(f"Drawing needs a seed an image; got {count} prompts and {len(seeds)} seeds.")
    channels = backbone.latent_channels(config)
    noise = draw_noise(seeds, (channels, *size)).to(pipe._execution_device, pipe.transformer.dtype)
    arguments = {name: _prepared(pipe, value, count) for name, value in conditions.items()}
    for name, value in (negatives or {}).items():
        arguments[f"negative_{name}"] = _prepared(pipe, value, count)
    if "prompt_embeds" in arguments:
        arguments |= backbone.call_with_embeddings
    switch = None
    if guidance_scale > 1 and guidance_interval != WHOLE:
        switch = _GuidanceSwitch(arguments, guidance_scale, guidance_interval)
        arguments |= {"callback_on_step_end": switch, "callback_on_step_end_tensor_inputs": ["latents"]}
    drawn = pipe(
        **arguments,
        **backbone.call_with,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance_scale if switch is None else switch.scale_at(0.0),
        latents=noise if backbone.packing == 1 else pipe._pack_latents(noise, count, channels, *size),
        output_type="latent",
    ).images
    return drawn if backbone.packing == 1 else pipe._unpack_latents(drawn, height, width, pipe.vae_scale_factor)


@torch.no_grad()
def encode(pipe: Any, prompts: Sequence[str], max_sequence_length: int) -> dict[str, Any]:
    """Arguments of the pipeline's call that stand for these prompts: embeddings where the family says how."""
    encode_text = backbone_of(pipe.transformer).encode_text
    if encode_text is None:
        return {"prompt": list(prompts)}
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # pipelines list what CLIP does not read of every prompt, which T5 reads
    try:
        return encode_text(pipe, list(prompts), max_sequence_length)
    finally:
        logging.set_verbosity(before)


def needs_negatives(pipe: Any, guidance_scale: float) -> bool:
    """Whether the negative prompt is of any use."""
    return guidance_scale > 1 and backbone_of(pipe.transformer).takes_negative


def default_length(pipe: Any) -> int:
    """Tokens that the pipeline's call gives its long text encoder when nobody names a number."""
    return inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default


def require_drawable(
    name: str, scale: float, interval: tuple[float, float] = WHOLE, negative_prompt: str = ""
) -> None:
    """Refuse what a pipeline of this class cannot do.

    Raises:
        ValueError: the class, the guidance scale, its interval or a negative prompt.
    """
    if name not in text_pipelines():
        raise ValueError(f"Cannot draw text with a {name}; allowed are {', '.join(text_pipelines())}.")
    backbone = drawing_backbone(name)
    if scale < 1:
        raise ValueError(f"Guidance must be at least 1, which is off; got {scale}.")
    start, end = interval
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"A guidance interval must be two times with 0 (noise) <= start < end <= 1 (data); got {start} {end}."
        )
    if interval != WHOLE and not backbone.takes_interval:
        others = ", ".join(other for other in text_pipelines() if drawing_backbone(other).takes_interval)
        raise ValueError(
            f"A {name} does not let its guidance be changed between steps; got interval {start} {end}, allowed is "
            f"{WHOLE[0]} {WHOLE[1]}. Pipelines that do: {others}."
        )
    if negative_prompt and not backbone.takes_negative:
        raise ValueError(
            f"A {name} takes no negative prompt, because guidance is an input of its model; got {negative_prompt!r}. "
            f"Leave it out."
        )


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse what is no list of prompts.

    Raises:
        ValueError: there is none, or one is not text or empty.
    """
    if isinstance(prompts, str) or len(prompts) == 0:
        raise ValueError(f"Drawing needs a list of prompts; got {prompts!r}.")
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"Prompt {number} of {len(prompts)} must be text that is not empty; got {prompt!r}.")


def truncated(pipe: Any, prompts: Sequence[str], max_sequence_length: int) -> list[str]:
    """The prompts whose end no text encoder of the pipeline reads."""
    count_tokens = backbone_of(pipe.transformer).count_tokens
    if count_tokens is None:  # the pipeline warns by itself
        return []
    counted = count_tokens(pipe, list(prompts), max_sequence_length).values()
    over = [[length > limit for length in lengths] for limit, lengths in counted]
    return [prompt for prompt, *cut in zip(prompts, *over, strict=True) if all(cut)]


def describe_truncated(prompts: Sequence[str], max_sequence_length: int) -> str:
    """One line for a person about prompts that are too long."""
    named = "; ".join(repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...") for prompt in prompts[:5])
    others = f" and {len(prompts) - 5} others" if len(prompts) > 5 else ""
    return (
        f"The text encoders do not read the end of {len(prompts)} of the prompts, which are longer than "
        f"{max_sequence_length} tokens: {named}{others}."
    )


class _GuidanceSwitch:
    """Turns guidance on and off between the steps of a pipeline whose family says that it `takes_interval`.

    Such a pipeline asks `_guidance_scale` at every step whether there is guidance, and then expects the embeddings of
    both halves in one batch. So both change together, after each step, for the next one.
    """

    def __init__(self, embedded: Mapping[str, Tensor], scale: float, interval: tuple[float, float]) -> None:
        self.scale, self.interval = scale, interval
        names = [name for name in embedded if f"negative_{name}" in embedded]
        self.conditional = {name: embedded[name] for name in names}
        self.both = {name: torch.cat([embedded[f"negative_{name}"], embedded[name]]) for name in names}
        self.scales: list[float] = []

    def scale_at(self, time: float) -> float:
        """Guidance at a native time; 1 is off."""
        return self.scale if in_interval(time, self.interval) else 1.0

    def __call__(self, pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the pipeline calls after each step."""
        if step == 0:
            times = from_sigma(pipe.scheduler.sigmas.double()).tolist()
            self.scales = [self.scale_at(time) for time in times]
            if self.scales[0] != pipe._guidance_scale:
                raise ValueError(
                    f"A guidance interval needs a schedule that starts at pure noise (time 0); this one starts at "
                    f"time {times[0]:.4f}. Use the interval {WHOLE}, or another scheduler."
                )
        pipe._guidance_scale = self.scales[step + 1]
        return dict(self.conditional if pipe._guidance_scale == 1 else self.both)


def _prepared(pipe: Any, value: Any, count: int) -> Any:
    """Rows of a condition where the pipeline wants them; one row stands for all."""
    if not isinstance(value, Tensor):
        return value * count if len(value) == 1 else value
    dtype = pipe.transformer.dtype if value.is_floating_point() else value.dtype
    return value.to(pipe._execution_device, dtype).expand(count, *value.shape[1:])
