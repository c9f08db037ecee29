"""Pipelines that a run draws with: the upgraded pair, the pretrained one, and samplers of both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from davae.backbones.adapter import LORA_FILE, load_adapter
from davae.backbones.finetuned import stored_scheduler
from davae.backbones.pair import Pair
from davae.caching.prompt_encoding import load_text_parts
from davae.core.precision import DTYPES
from davae.data.image_source import ImageSource
from davae.data.prompt_cache import PromptCache
from davae.data.prompt_list import read_prompts
from davae.recipe import SampleConfig
from davae.run import build, geometry
from davae.run.run import Run
from davae.sampling.class_sampler import ClassSampler
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline
from davae.sampling.sampler import Sampler
from davae.sampling.text_sampler import TextSampler, TypedPrompts


def upgraded(run: Run, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The upgraded pair of a finished run as a stock pipeline, in eval mode.

    Of a text-to-image run: the pretrained pair with the trained autoencoder, and its transformer widened with the
    trained parts, LoRA folded in.

    Args:
        run: its fine-tuning is done.
        dtype: of all parts.
        components: take the place of saved ones, for example None of a text encoder.

    Raises:
        FileNotFoundError: the fine-tuning is not done.
    """
    trained = run.finetuned()
    if not run.pair.is_text:
        return Pair(trained).load(dtype, **components)
    autoencoder = build.trained_tokenizer(run)
    return run.pair.load(
        dtype,
        vae=autoencoder.to("cpu", dtype),
        transformer=_trained_transformer(run, trained).to(dtype).eval(),
        scheduler=stored_scheduler(trained / "scheduler"),
        **components,
    )


def _trained_transformer(run: Run, trained: Path) -> Any:
    """The transformer of a finished text-to-image training as an ordinary model, fp32."""
    if not (trained / LORA_FILE).exists():
        return run.pair.model_class("transformer").from_pretrained(trained, use_safetensors=True)
    pretrained = run.pair.load_transformer()
    wide, _ = build.widened(pretrained, geometry.upgraded(run), run.recipe.image_size, consume=True)
    return load_adapter(wide, trained)


def drawing(run: Run) -> Any:
    """What section sample draws with: the upgraded pair, or the pretrained one in a recipe without fine-tuning.

    Text encoders are in the precision in which they encoded the training's captions.
    """
    if not run.recipe.has("finetune"):
        return run.pair.load()
    if not run.pair.is_text:
        return upgraded(run)
    config = run.recipe.prompts
    dtype = PromptCache(run.result("prompts")).manifest.dtype if config is None else config.dtype
    encoders = load_text_parts(run.pair, DTYPES[dtype])
    return upgraded(run, **{name: getattr(encoders, name) for name in run.pair.text_parts})


def sampler(run: Run, pipeline: Any, size: int) -> Sampler:
    """The sampler of a loaded pipeline for images of `size` px, with the settings of section sample.

    Raises:
        ValueError: there is nothing to draw, or the size is not known.
    """
    config = sample_config(run)
    if isinstance(pipeline, LightningDiTPipeline):
        return ClassSampler(pipeline, config, config.labels)
    if size < 1:
        raise ValueError("The size of the images is not known; got image_size 0. Set image_size in the recipe.")
    prompts = TypedPrompts(pipeline, prompts_to_draw(run), _max_length(run))
    return TextSampler(pipeline, config, prompts, (size, size))


def sample_config(run: Run) -> SampleConfig:
    """Section sample of a recipe that has it."""
    assert run.recipe.sample is not None
    return run.recipe.sample


def prompts_to_draw(run: Run) -> list[str]:
    """What a text-to-image run draws: the prompts of a file, or the first captions of the test images.

    Raises:
        ValueError: there are none.
    """
    config = sample_config(run)
    if config.prompts is not None:
        return read_prompts(Path(config.prompts))
    if run.recipe.data is None:
        raise ValueError(
            "There is nothing to draw: the recipe has neither sample.prompts nor data with captions. Set "
            "sample.prompts to a file of prompts."
        )
    prompts = [caption for caption in run.data.test.captions if caption]
    if not prompts:
        raise ValueError(
            "There is nothing to draw: the test images have no captions. Set sample.prompts to a file of prompts."
        )
    return prompts


def asked(run: Run, sampler: Sampler, indices: Sequence[int]) -> list[str]:
    """What each image is drawn as: its prompt, or the name of its class where the data have one."""
    if not isinstance(sampler, ClassSampler):
        return sampler.captions(indices)
    names = () if run.recipe.data is None else run.data.test.class_names
    labels = zip(sampler.labels(indices), sampler.captions(indices), strict=True)
    return [names[label] if label < len(names) else caption for label, caption in labels]


def asked_of_real(run: Run, source: ImageSource) -> list[str]:
    """What images of the data are, in the words of `asked`."""
    if run.pair.is_text or not source.class_names:
        return list(source.captions)
    return [source.class_names[label] for label in source.labels]


def _max_length(run: Run) -> int | None:
    """As in training; the pipeline's default where nothing was trained."""
    if run.recipe.prompts is not None:
        return run.recipe.prompts.max_length
    return PromptCache(run.result("prompts")).manifest.max_length if run.recipe.has("prompts") else None
