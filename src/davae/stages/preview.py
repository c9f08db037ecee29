"""Pictures while a transformer trains: fixed prompts or classes, fixed seeds, the averaged weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from davae.data.prompts import NULL, PromptCache
from davae.models.autoencoder import AutoencoderDA
from davae.report.figures import image_grid
from davae.sampling.pipeline import LightningDiTPipeline
from davae.sampling.text import decode, draw_encoded, needs_negatives
from davae.stages.drawing import to_uint8
from davae.stages.phase import Phase
from davae.stages.training import applied
from davae.train.diffusion import DiffusionTask

Hook = tuple[int, Callable[[int], None]]


def preview_id(prompt: str) -> str:
    """Under which a prompt of the preview stands in the prompt cache."""
    return f"preview: {prompt}"


def preview_hooks(phase: Phase, task: DiffusionTask, autoencoder: AutoencoderDA, scheduler: Any) -> list[Hook]:
    """For the training loop: every so many steps, a grid in the run's folder previews/."""
    config = phase.config.preview
    if config is None or not phase.run.accelerator.is_main_process:
        return []
    learner = task.learners["transformer"]

    def draw(step: int) -> None:
        network, device = learner.network, phase.run.accelerator.device
        network.eval()
        autoencoder.to(device)
        precision = phase.config.precision == "bf16"
        with (
            applied(learner.average),
            torch.autocast(device.type, torch.bfloat16, enabled=precision),
            torch.no_grad(),
        ):
            images = _drawn(phase, network, autoencoder, scheduler)
        autoencoder.to("cpu")
        network.train()
        folder = phase.run.folder / "previews"
        folder.mkdir(exist_ok=True)
        image_grid(images, columns=min(len(images), 4)).save(folder / f"{phase.name}-{step:08d}.png")

    return [(config.every, draw)]


def _drawn(phase: Phase, transformer: Any, autoencoder: AutoencoderDA, scheduler: Any) -> Tensor:
    """uint8 images [N, 3, H, W]."""
    config, pair, size = phase.config.preview, phase.run.pair, phase.run.recipe.image_size
    assert config is not None
    if not pair.is_text:
        drawn = LightningDiTPipeline(autoencoder, transformer, scheduler)
        drawn.set_progress_bar_config(disable=True)
        images = drawn(
            [index % transformer.config.num_classes for index in range(config.count)],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            generator=[torch.Generator().manual_seed(config.seed + index) for index in range(config.count)],
            output_type="pt",
        ).images
        return to_uint8(images)
    pipe = pair.load(vae=autoencoder, transformer=transformer, scheduler=scheduler, **dict.fromkeys(pair.text_parts))
    pipe.set_progress_bar_config(disable=True)
    cache = PromptCache(phase.prompts)
    latents = draw_encoded(
        pipe,
        cache.embeddings([preview_id(prompt) for prompt in config.prompts]),
        cache.embeddings([NULL]) if needs_negatives(pipe, config.guidance_scale) else None,
        range(config.seed, config.seed + len(config.prompts)),
        height=size,
        width=size,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
    )
    return to_uint8(decode(pipe, latents))
