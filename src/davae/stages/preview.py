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
from davae.stages.drawing import computing, decoder_parts, to_uint8
from davae.stages.phase import Phase
from davae.stages.training import applied
from davae.train.diffusion import DiffusionTask

Hook = tuple[int, Callable[[int], None]]


def preview_id(prompt: str) -> str:
    """Under which a prompt of the preview stands in the prompt cache."""
    return f"preview: {prompt}"


def preview_hooks(phase: Phase, task: DiffusionTask, autoencoder: AutoencoderDA, scheduler: Any) -> list[Hook]:
    """For the training loop: every so many steps, a grid in the run's folder previews/.

    Raises:
        DataError: the prompt cache lacks a prompt of the preview.
    """
    config = phase.config.preview
    if config is None:
        return []
    conditions = _conditions(phase)  # by every process, and now: what is missing stops all of them before a step
    if not phase.run.accelerator.is_main_process:
        return []
    learner = task.learners["transformer"]

    def draw(step: int) -> None:
        network, device = learner.network, phase.run.accelerator.device
        network.eval()
        autoencoder.to(device)
        with applied(learner.average), computing(network, phase.config.precision), torch.no_grad():
            images = _drawn(phase, network, autoencoder, scheduler, conditions)
        autoencoder.to("cpu")
        network.train()
        folder = phase.run.folder / "previews"
        folder.mkdir(exist_ok=True)
        image_grid(images, columns=min(len(images), 4)).save(folder / f"{phase.name}-{step:08d}.png")

    return [(config.every, draw)]


def _conditions(phase: Phase) -> dict[str, Tensor]:
    """Embeddings of the prompts and, in the last row, of the empty one; none of a class-conditional pair."""
    config = phase.config.preview
    assert config is not None
    if not phase.run.pair.is_text:
        return {}
    if not config.prompts:
        raise ValueError(
            f"{phase.name}.preview has nothing to draw: the pair draws from prompts, and preview.prompts is empty. "
            f"Name some, or leave preview out."
        )
    return PromptCache(phase.prompts).embeddings([*map(preview_id, config.prompts), NULL])


def _drawn(
    phase: Phase, transformer: Any, autoencoder: AutoencoderDA, scheduler: Any, conditions: dict[str, Tensor]
) -> Tensor:
    """uint8 images [N, 3, H, W]."""
    config, pair, size = phase.config.preview, phase.run.pair, phase.run.recipe.image_size
    assert config is not None
    if not pair.is_text:
        drawn = LightningDiTPipeline(autoencoder, transformer, scheduler)
        drawn.set_progress_bar_config(disable=True)
        latents = drawn(
            [index % transformer.config.num_classes for index in range(config.count)],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            generator=[torch.Generator().manual_seed(config.seed + index) for index in range(config.count)],
            output_type="latent",
        ).images
        return torch.cat([to_uint8(drawn.decode(part, "pt")) for part in decoder_parts(drawn, latents)])
    pipe = pair.load(vae=autoencoder, transformer=transformer, scheduler=scheduler, **dict.fromkeys(pair.text_parts))
    pipe.set_progress_bar_config(disable=True)
    latents = draw_encoded(
        pipe,
        {name: rows[:-1] for name, rows in conditions.items()},
        {name: rows[-1:] for name, rows in conditions.items()}
        if needs_negatives(pipe, config.guidance_scale)
        else None,
        range(config.seed, config.seed + len(config.prompts)),
        height=size,
        width=size,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
    )
    return torch.cat([to_uint8(decode(pipe, part)) for part in decoder_parts(pipe, latents)])
