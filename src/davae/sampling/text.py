"""Drawing from stock text-to-image pipelines of diffusers: one seed an image, guidance in an interval, previews.

The pipeline's own call does the work. This file gives it noise of our own, so that an image does not depend on its
batch and starts where the base model's starts, and changes the guidance between steps where the pipeline lets us.
"""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from davae.backbones.registry import backbone_of
from davae.core.flow import from_sigma
from davae.models.autoencoder import AutoencoderDA
from davae.models.faces import compression_of
from davae.models.scaling import scaling_of
from davae.sampling.denoise import draw_noise
from davae.sampling.grid import Grid
from davae.sampling.guidance import in_interval

TEXT_PIPELINES = ("StableDiffusion3Pipeline", "FluxPipeline", "SanaPipeline", "PixArtSigmaPipeline")
"""Pipelines that can be drawn from by text."""
WHOLE = (0.0, 1.0)
"""The guidance interval that leaves no step out."""

_WITH_INTERVAL = ("StableDiffusion3Pipeline",)
_WITHOUT_NEGATIVES = ("FluxPipeline",)  # guidance is an input of the model


@torch.no_grad()
def draw_text(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    height: int,
    width: int,
    steps: int,
    guidance_scale: float,
    guidance_interval: tuple[float, float] = WHOLE,
    negative_prompt: str = "",
    max_sequence_length: int | None = None,
) -> Tensor:
    """Latents [B, K, h, w] of one image a prompt, as the transformer draws them.

    Args:
        pipe: one of `TEXT_PIPELINES`, upgraded or not.
        prompts: what is drawn.
        seeds: of the noise, one an image: the image is the same in any batch, but for rounding.
        height: of the images, pixels.
        width: of the images, pixels.
        steps: of the pipeline's scheduler.
        guidance_scale: 1 is off, and spares half the work (but not for FLUX.1, which takes it as an input).
        guidance_interval: native times (0 = noise, 1 = data) between which guidance is on; outside, the
            unconditional half is not computed (Kynkaanniemi et al. 2024).
        negative_prompt: what guidance leads away from.
        max_sequence_length: tokens of the long text encoder; None takes the pipeline's default.

    Raises:
        ValueError: a prompt, the size, the guidance or the pipeline cannot be used; the text says why.
    """
    check_prompts(prompts)
    require_drawable(type(pipe).__name__, guidance_scale, guidance_interval, negative_prompt)
    length = default_length(pipe) if max_sequence_length is None else max_sequence_length
    if cut := truncated(pipe, prompts, length):
        warnings.warn(describe_truncated(cut, length), stacklevel=2)
    return draw_encoded(
        pipe,
        encode(pipe, prompts, length),
        encode(pipe, [negative_prompt], length) if needs_negatives(pipe, guidance_scale) else None,
        seeds,
        height=height,
        width=width,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
    )


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
        pipe: see `draw_text`.
        conditions: arguments of the pipeline's call, as `encode` or a prompt cache gives them, B rows each.
        negatives: the same of the negative prompt, B rows or one; None where `needs_negatives` says so.
        seeds: B of them.
        height: see `draw_text`.
        width: see `draw_text`.
        steps: see `draw_text`.
        guidance_scale: see `draw_text`.
        guidance_interval: see `draw_text`.
    """
    require_drawable(type(pipe).__name__, guidance_scale, guidance_interval)
    backbone, config = backbone_of(pipe.transformer), pipe.transformer.config
    size = Grid.of(backbone, config, compression_of(pipe.vae)).latent_size(height, width)
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
def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], float32 on the CPU, of latents that the pipeline's transformer drew."""
    return _decoded(pipe, latents, lambda stored: pipe.vae.decode(stored).sample)


@torch.no_grad()
def preview(pipe: Any, latents: Tensor) -> Tensor:
    """The same from the base channels alone, decoded by the base autoencoder and enlarged.

    Raises:
        ValueError: the pipeline is not upgraded.
    """
    if not isinstance(pipe.vae, AutoencoderDA):
        raise ValueError(
            f"A preview shows the base channels of an upgraded pipeline; this one has a {type(pipe.vae).__name__}."
        )
    return _decoded(pipe, latents, pipe.vae.preview)


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
    return guidance_scale > 1 and type(pipe).__name__ not in _WITHOUT_NEGATIVES


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
    if name not in TEXT_PIPELINES:
        raise ValueError(f"Cannot draw text with a {name}; allowed are {', '.join(TEXT_PIPELINES)}.")
    if scale < 1:
        raise ValueError(f"Guidance must be at least 1, which is off; got {scale}.")
    start, end = interval
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"A guidance interval must be two times with 0 (noise) <= start < end <= 1 (data); got {start} {end}."
        )
    if interval != WHOLE and name not in _WITH_INTERVAL:
        raise ValueError(
            f"A {name} does not let its guidance be changed between steps; got interval {start} {end}, allowed is "
            f"{WHOLE[0]} {WHOLE[1]}. Pipelines that do: {', '.join(_WITH_INTERVAL)}."
        )
    if negative_prompt and name in _WITHOUT_NEGATIVES:
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
    """Turns guidance on and off between the steps of SD3's pipeline.

    The pipeline asks `_guidance_scale` at every step whether there is guidance, and then expects the embeddings of
    both halves in one batch. So both change together, after each step, for the next one.
    """

    def __init__(self, embedded: Mapping[str, Tensor], scale: float, interval: tuple[float, float]) -> None:
        self.scale, self.interval = scale, interval
        names = ("prompt_embeds", "pooled_prompt_embeds")
        self.one = {name: embedded[name] for name in names}
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
        return dict(self.one if pipe._guidance_scale == 1 else self.both)


def _prepared(pipe: Any, value: Any, count: int) -> Any:
    """Rows of a condition where the pipeline wants them; one row stands for all."""
    if not isinstance(value, Tensor):
        return value * count if len(value) == 1 else value
    dtype = pipe.transformer.dtype if value.is_floating_point() else value.dtype
    return value.to(pipe._execution_device, dtype).expand(count, *value.shape[1:])


def _decoded(pipe: Any, latents: Tensor, decoder: Any) -> Tensor:
    scaling = scaling_of(pipe.vae)
    stored = scaling.denormalise(latents.to(pipe._execution_device, torch.float32)).to(pipe.vae.dtype)
    images = decoder(stored)
    pipe.maybe_free_model_hooks()
    return (images.float() / 2 + 0.5).clamp(0, 1).cpu()
