"""Pictures while a transformer trains: fixed prompts or classes, fixed seeds, the averaged weights."""

from typing import Any

import torch
from torch import Tensor

from davae.data.prompt_cache import NULL, PromptCache
from davae.models.autoencoder import AutoencoderDA
from davae.recipe import PreviewConfig
from davae.report.figures import image_grid
from davae.run import build
from davae.run.fit import applied
from davae.run.rounds import Round
from davae.sampling.class_sampler import ClassSampler
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline
from davae.sampling.sampler import Sampler
from davae.sampling.settings import SamplerSettings
from davae.sampling.text_sampler import EncodedPrompts, TextSampler
from davae.train.diffusion import DiffusionTask
from davae.train.loop import Hook

COLUMNS = 4
"""Images a row of the grid."""


def prompts_of_previews(current: Round) -> dict[str, tuple[str, ...]]:
    """Prompts that are drawn during a round, by their ids in the prompt cache."""
    preview = current.config.preview if _is_trained_here(current) else None
    return {} if preview is None else {_id(prompt): (prompt,) for prompt in preview.prompts}


def preview_hooks(current: Round, task: DiffusionTask, autoencoder: AutoencoderDA) -> list[Hook]:
    """For the training loop: every so many steps, a grid in the run's folder previews/.

    Raises:
        DataError: the prompt cache lacks a prompt of the preview.
        ValueError: the pair draws from prompts, and there are none.
    """
    config, run = current.config.preview, current.run
    if config is None:
        return []
    prompts = _encoded(current, config)  # by every process, and now: what is missing stops all of them before a step
    if not run.is_main:
        return []
    learner, scheduler = task.learners["transformer"], build.scheduler(current, autoencoder.layout)
    settings = SamplerSettings(
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        seed=config.seed,
        precision=current.config.precision,
    )

    def draw(step: int) -> None:
        network = learner.network.eval()
        autoencoder.to(run.accelerator.device)
        with applied(learner.average), torch.no_grad():
            sampler, count = _sampler(current, network, autoencoder, scheduler, settings, prompts)
            images = sampler.images(sampler.latents(range(count)))
        autoencoder.to("cpu")
        network.train()
        path = run.folder.preview(current.name, step)
        path.parent.mkdir(exist_ok=True)
        image_grid(images, columns=min(len(images), COLUMNS)).save(path)

    return [(config.every, draw)]


def _sampler(
    current: Round,
    transformer: Any,
    autoencoder: AutoencoderDA,
    scheduler: Any,
    settings: SamplerSettings,
    prompts: EncodedPrompts | None,
) -> tuple[Sampler, int]:
    """What draws with the weights of now, and how many images."""
    pair, size, config = current.run.pair, current.run.recipe.image_size, current.config.preview
    assert config is not None
    if prompts is None:
        pipeline = LightningDiTPipeline(autoencoder, transformer, scheduler)
        return ClassSampler(pipeline, settings), config.count
    absent: dict[str, Any] = dict.fromkeys(pair.text_parts)
    stock = pair.load(vae=autoencoder, transformer=transformer, scheduler=scheduler, **absent)
    return TextSampler(stock, settings, prompts, (size, size)), len(config.prompts)


def _encoded(current: Round, config: PreviewConfig) -> EncodedPrompts | None:
    """The prompts as the cache has them; None for a class-conditional pair."""
    if not current.run.pair.is_text:
        return None
    if not config.prompts:
        raise ValueError(
            f"{current.name}.preview has nothing to draw: the pair draws from prompts, and preview.prompts is empty. "
            f"Name some, or leave preview out."
        )
    rows = PromptCache(current.prompts).embeddings([*map(_id, config.prompts), NULL])
    conditional: dict[str, Tensor] = {name: tensor[:-1] for name, tensor in rows.items()}
    return EncodedPrompts(config.prompts, conditional, {name: tensor[-1:] for name, tensor in rows.items()})


def _id(prompt: str) -> str:
    """Under which a prompt of a preview stands in the prompt cache."""
    return f"preview: {prompt}"


def _is_trained_here(current: Round) -> bool:
    recipe = current.run.recipe
    return (recipe.realism if current.is_second else recipe.finetune) is not None
