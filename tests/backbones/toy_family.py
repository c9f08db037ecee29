"""A text-to-image family that the library has never heard of: transformer, pipeline, and its one `Backbone`.

`register` does what a file in backbones/ and a line in its registry would do, and what diffusers would.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ConfigMixin, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from davae.backbones.base import Backbone, Shapes, text_device, token_lengths
from davae.backbones.registry import BACKBONES
from davae.core.flow import to_scheduler_velocity, to_sigma
from tiny_text import MAX_LENGTH, clip_encoder, clip_tokenizer, tiny_vae

TEXT = 8
"""Width of the text embeddings."""


class ToyTransformer(ModelMixin, ConfigMixin):
    """Patches, one layer that hears time and text, and a head; predicts noise minus data."""

    @register_to_config
    def __init__(
        self, sample_size: int = 4, patch_size: int = 2, in_channels: int = 4, width: int = 16, text_width: int = TEXT
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.from_time, self.from_text = nn.Linear(1, width), nn.Linear(text_width, width)
        self.mix = nn.Linear(width, width)
        self.final = nn.Linear(width, patch_size**2 * in_channels)

    def forward(self, hidden_states: Tensor, sigma: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """[B, K, h, w], [B] and [B, words, TEXT] to [B, K, h, w]."""
        patches = self.patches(hidden_states)
        side, (height, width) = self.config.patch_size, patches.shape[2:]
        condition = self.from_time(sigma[:, None]) + self.from_text(encoder_hidden_states).mean(1)
        tokens = self.mix(torch.tanh(patches.flatten(2).transpose(1, 2) + condition[:, None]))
        pixels = self.final(torch.tanh(tokens)).unflatten(2, (side, side, -1)).unflatten(1, (height, width))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class ToyPipeline(DiffusionPipeline):
    """What a stock pipeline does, in few lines."""

    model_cpu_offload_seq = "text_encoder->transformer->vae"

    def __init__(self, vae: Any, transformer: Any, scheduler: Any, text_encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(
            vae=vae, transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent position, a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def encode_prompt(self, prompt: list[str], max_sequence_length: int = MAX_LENGTH) -> Tensor:
        """[B, max_sequence_length, TEXT]."""
        settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(prompt, max_length=max_sequence_length, **settings).input_ids
        return self.text_encoder(tokens.to(text_device(self))).last_hidden_state

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str] | None = None,
        height: int = 16,
        width: int = 16,
        num_inference_steps: int = 4,
        guidance_scale: float = 1.0,
        negative_prompt: str = "",
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        max_sequence_length: int = MAX_LENGTH,
        output_type: str = "latent",
    ) -> ImagePipelineOutput:
        """Latents, or images [B, 3, H, W] in [-1, 1]."""
        text = self.encode_prompt(prompt, max_sequence_length) if prompt_embeds is None else prompt_embeds
        if guidance_scale > 1 and negative_prompt_embeds is None:
            negative_prompt_embeds = self.encode_prompt([negative_prompt] * len(text), max_sequence_length)
        if latents is None:
            side = self.vae_scale_factor
            latents = torch.randn(len(text), self.transformer.config.in_channels, height // side, width // side)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, timestep in enumerate(self.scheduler.timesteps):
            sigma = self.scheduler.sigmas[step].expand(len(text))
            predicted = self.transformer(latents, sigma, text)
            if guidance_scale > 1:
                free = self.transformer(latents, sigma, negative_prompt_embeds)
                predicted = free + guidance_scale * (predicted - free)
            latents = self.scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        if output_type == "latent":
            return ImagePipelineOutput(latents)
        config = self.vae.config
        return ImagePipelineOutput(self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample)


def _velocity(transformer: nn.Module, latent: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    text = conditions["prompt_embeds"].to(latent.dtype)
    return to_scheduler_velocity(transformer(latent, to_sigma(time), text))


def _condition_shapes(config: Any, max_length: int) -> Shapes:
    return {"prompt_embeds": ((max_length, config.text_width), torch.float32)}


def _encode_text(pipe: Any, prompts: list[str], max_length: int) -> dict[str, Tensor]:
    return {"prompt_embeds": pipe.encode_prompt(prompts, max_length)}


def _count_tokens(pipe: Any, prompts: list[str], max_length: int) -> dict[str, tuple[int, list[int]]]:
    return {"tokenizer": (max_length, token_lengths(pipe.tokenizer, prompts))}


TOY = Backbone(
    class_name="ToyTransformer",
    convention="velocity",
    condition="text",
    conditioned_on="CLIP text: prompt, negative_prompt (prompt_embeds)",
    embedders=("patches",),
    head="final",
    lora_targets=("mix",),
    pipelines=("ToyPipeline",),
    takes_negative=True,
    velocity=_velocity,
    condition_shapes=_condition_shapes,
    text_parts=("text_encoder", "tokenizer"),
    encode_text=_encode_text,
    count_tokens=_count_tokens,
)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the family known, its classes to diffusers under whose name they are saved."""
    monkeypatch.setitem(BACKBONES, TOY.class_name, TOY)
    for cls in (ToyTransformer, ToyPipeline):
        monkeypatch.setattr(cls, "__module__", "diffusers")
        monkeypatch.setattr(diffusers, cls.__name__, cls, raising=False)


def toy_pipeline() -> ToyPipeline:
    """A pipeline for 16 px images; upgraded by 2 it makes 32 px. The same bits every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = clip_tokenizer()
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        return ToyPipeline(tiny_vae(), ToyTransformer().eval(), scheduler, clip_encoder(tokenizer, TEXT), tokenizer)
