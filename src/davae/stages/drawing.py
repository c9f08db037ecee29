"""Drawing batches of images from a pair, one seed an image."""

from collections.abc import Iterator

import torch
from torch import Tensor

from davae.recipe import SampleConfig
from davae.sampling.denoise import draw_noise
from davae.sampling.guidance import guide_all, guide_first
from davae.sampling.pipeline import LightningDiTPipeline


def draw_latents(pipeline: LightningDiTPipeline, config: SampleConfig, indices: list[int]) -> Tensor:
    """What the transformer draws for images `indices`: [B, K, h, w], each from its own seed."""
    transformer = pipeline.transformer.config
    shape = (transformer.in_channels, transformer.sample_size, transformer.sample_size)
    noise = draw_noise([config.seed + index for index in indices], shape)
    device = pipeline.transformer.device
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        return pipeline(
            [index % transformer.num_classes for index in indices],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            guidance_interval=config.guidance_interval,
            guidance=guide_all if config.guidance_channels is None else guide_first(config.guidance_channels),
            latents=noise,
            output_type="latent",
        ).images


def decode_images(pipeline: LightningDiTPipeline, latents: Tensor) -> Tensor:
    """uint8 images [B, 3, H, W] of latents that a transformer drew."""
    return to_uint8(pipeline.decode(latents, output_type="pt"))


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8, rounded."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def draw_all(
    pipeline: LightningDiTPipeline, config: SampleConfig, indices: list[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, latents) batch by batch."""
    for start in range(0, len(indices), config.batch_size):
        batch = indices[start : start + config.batch_size]
        yield batch, draw_latents(pipeline, config, batch)
