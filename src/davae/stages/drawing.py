"""Drawing images from a pair, one seed an image: what `sample` and `evaluate` share.

A `Drawer` knows what image i is of and where its noise comes from, so that it does not depend on its batch. There is
one a kind of pipeline; `drawer_of` chooses.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from davae.core.randomness import uniform
from davae.data.prompt_list import read_prompts
from davae.data.prompts import PromptCache
from davae.models.faces import compression_of
from davae.recipe import SampleConfig
from davae.sampling.denoise import draw_noise
from davae.sampling.guidance import guide_all, guide_first
from davae.sampling.pipeline import LightningDiTPipeline
from davae.sampling.text import decode, draw_text
from davae.stages.embed import load_text_parts
from davae.stages.encode import DTYPES
from davae.stages.pairs import load_upgraded
from davae.stages.portions import images_at_once
from davae.stages.run import Run, folder_hash

DECODED_AT_ONCE = 32
"""Images: an autoencoder needs far more memory an image than the transformer that drew its latent."""


class Drawer(Protocol):
    """Draws image i from its own seed and condition."""

    def latents(self, indices: Sequence[int]) -> Tensor:
        """What the transformer draws for images `indices`: float32 [B, K, h, w], as the transformer sees latents."""

    def images(self, latents: Tensor, size: int | None = None) -> Tensor:
        """Latents decoded: uint8 [B, 3, H, W] on the CPU.

        Args:
            latents: [B, K, h, w], as `latents` gives them, on any device.
            size: side to which square images are enlarged (bicubic) before they are rounded; None leaves them.
        """

    def condition_names(self, indices: Sequence[int]) -> list[str]:
        """What each image is of, for people."""


class ClassDrawer:
    """Draws classes.

    Args:
        pipeline: on its device.
        config: seeds, labels, steps and guidance.
    """

    def __init__(self, pipeline: LightningDiTPipeline, config: SampleConfig) -> None:
        self.pipeline, self.config = pipeline, config
        pipeline.set_progress_bar_config(disable=True)

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Class of each image."""
        count = self.pipeline.transformer.config.num_classes
        if self.config.labels == "balanced":
            return [index % count for index in indices]
        return [int(draw * count) for draw in uniform(self.config.seed, "sample label", indices).tolist()]

    def latents(self, indices: Sequence[int]) -> Tensor:
        """See `Drawer`."""
        config, transformer = self.config, self.pipeline.transformer
        side = transformer.config.sample_size
        noise = draw_noise([config.seed + index for index in indices], (transformer.config.in_channels, side, side))
        with computing(transformer, config.precision):
            return self.pipeline(
                self.labels(indices),
                num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale,
                guidance_interval=config.guidance_interval,
                guidance=guide_all if config.guidance_channels is None else guide_first(config.guidance_channels),
                latents=noise,
                output_type="latent",
            ).images

    def images(self, latents: Tensor, size: int | None = None) -> Tensor:
        """See `Drawer`."""
        parts = (self.pipeline.decode(part, output_type="pt") for part in decoder_parts(self.pipeline, latents))
        return torch.cat([to_uint8(part if size is None else enlarged(part, size)) for part in parts])

    def condition_names(self, indices: Sequence[int]) -> list[str]:
        """See `Drawer`."""
        return [f"class {label}" for label in self.labels(indices)]


class TextDrawer:
    """Draws prompts with a stock text pipeline.

    Args:
        pipeline: with its text encoders, on its device.
        config: seeds, steps and guidance.
        prompts: image i is of prompt i modulo their number.
        size: side of the images, pixels.
        max_length: tokens of the long text encoder; None takes the pipeline's default.
    """

    def __init__(
        self, pipeline: Any, config: SampleConfig, prompts: Sequence[str], size: int, max_length: int | None
    ) -> None:
        self.pipeline, self.config, self.prompts = pipeline, config, prompts
        self.size, self.max_length = size, max_length
        pipeline.set_progress_bar_config(disable=True)

    def latents(self, indices: Sequence[int]) -> Tensor:
        """See `Drawer`."""
        config = self.config
        with computing(self.pipeline.transformer, config.precision):
            return draw_text(
                self.pipeline,
                self.condition_names(indices),
                [config.seed + index for index in indices],
                height=self.size,
                width=self.size,
                steps=config.steps,
                guidance_scale=config.guidance_scale,
                guidance_interval=config.guidance_interval,
                max_sequence_length=self.max_length,
            ).float()

    def images(self, latents: Tensor, size: int | None = None) -> Tensor:
        """See `Drawer`."""
        parts = (decode(self.pipeline, part) for part in decoder_parts(self.pipeline, latents))
        return torch.cat([to_uint8(part if size is None else enlarged(part, size)) for part in parts])

    def condition_names(self, indices: Sequence[int]) -> list[str]:
        """See `Drawer`."""
        return [self.prompts[index % len(self.prompts)] for index in indices]


def drawer_of(run: Run, pipeline: Any, size: int) -> Drawer:
    """The drawer of a loaded pipeline for images of `size` pixels, with the run's settings of `sample`."""
    assert run.recipe.sample is not None
    if isinstance(pipeline, LightningDiTPipeline):
        return ClassDrawer(pipeline, run.recipe.sample)
    if size < 1:
        raise ValueError("The size of the images is not known; got image_size 0. Set image_size in the recipe.")
    return TextDrawer(pipeline, run.recipe.sample, _prompts(run), size, _max_length(run))


def _prompts(run: Run) -> list[str]:
    """What a text-to-image run draws: the prompts of a file, or the captions of the test images."""
    assert run.recipe.sample is not None
    if run.recipe.sample.prompts is not None:
        return read_prompts(Path(run.recipe.sample.prompts))
    if run.recipe.data is None:
        raise ValueError(
            "There is nothing to draw: the recipe has neither sample.prompts nor data with captions. Set "
            "sample.prompts to a file of prompts."
        )
    captions = [caption for caption in run.sources[1].captions if caption]
    if not captions:
        raise ValueError(
            "There is nothing to draw: the test images have no captions. Set sample.prompts to a file of prompts."
        )
    return captions


def _max_length(run: Run) -> int | None:
    """As in training; the pipeline's default where nothing was trained."""
    if run.recipe.prompts is not None:
        return run.recipe.prompts.max_length
    return PromptCache(run.path_of("prompts")).manifest.max_length if run.recipe.has("prompts") else None


def load_drawn(run: Run) -> Any:
    """What `sample` draws with: the upgraded pair, or the pretrained one in a recipe without fine-tuning.

    Text encoders are in the precision in which they encoded the training's captions.
    """
    if not run.recipe.has("finetune"):
        return run.pair.load()
    if not run.pair.is_text:
        return load_upgraded(run)
    own = run.recipe.prompts
    dtype = PromptCache(run.path_of("prompts")).manifest.dtype if own is None else own.dtype
    encoders = load_text_parts(run.pair.source, DTYPES[dtype])
    return load_upgraded(run, **{name: getattr(encoders, name) for name in run.pair.text_parts})


def drawn_inputs(run: Run) -> dict[str, Any]:
    """What the images depend on, apart from settings."""
    result: dict[str, Any] = {}
    if not run.recipe.has("finetune"):
        result["pipeline"] = folder_hash(run.pair.folder(run.pair.parts))
    else:
        result["pipeline"] = folder_hash(run.upgraded_path())
        if run.pair.is_text:
            result["tokenizer"] = folder_hash(run.path_of("tokenizer"))
            result["pair"] = folder_hash(run.pair.folder(["transformer"]) / "transformer")
    if run.pair.is_text and run.recipe.sample is not None:
        result["prompts_drawn"] = hashlib.blake2b("\n".join(_prompts(run)).encode(), digest_size=16).hexdigest()
    return result


@contextmanager
def computing(transformer: nn.Module, precision: str) -> Iterator[None]:
    """Inside, a transformer computes in `precision`, "fp32" or "bf16" (autocast), and predicts in float32.

    Schedulers of diffusers keep the state between steps in the dtype of the prediction; rounding would add up there.
    """
    if precision == "fp32":
        yield
        return
    device = next(transformer.parameters()).device
    hook = transformer.register_forward_hook(_predict_in_float32)
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        hook.remove()


def _predict_in_float32(transformer: nn.Module, arguments: Any, output: Any) -> Any:
    # Text pipelines ask for tuples; `LightningDiTPipeline` asks for an output object and rounds nothing.
    return (output[0].float(), *output[1:]) if isinstance(output, tuple) else output


def decoder_parts(pipeline: Any, latents: Tensor) -> Sequence[Tensor]:
    """Latents [B, K, h, w] in parts that an autoencoder can decode at once."""
    height, width = latents.shape[-2:]
    factor = compression_of(pipeline.vae)
    return latents.split(images_at_once(height * factor, width * factor, DECODED_AT_ONCE))


def draw_all(drawer: Drawer, count: int, batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """(indices, latents) of images 0 .. count - 1, batch by batch."""
    for indices in batches(count, batch_size):
        yield indices, drawer.latents(indices)


def batches(count: int, batch_size: int) -> list[list[int]]:
    """0 .. count - 1 in parts."""
    return [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]


def enlarged(images: Tensor, size: int) -> Tensor:
    """Square images [B, 3, H, W] at side `size`, bicubic."""
    return F.interpolate(images.float(), size=(size, size), mode="bicubic", align_corners=False)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8, rounded, on the CPU."""
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
