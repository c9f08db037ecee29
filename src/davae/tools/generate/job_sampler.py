"""The loaded pipelines that draw a job."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from davae.backbones.registry import drawing_backbone
from davae.core.finite import bad_rows
from davae.core.observer import Observer
from davae.sampling.image_formats import IMAGE, GeneratedImage
from davae.sampling.sampler import preview
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from davae.tools.generate.job import BASELINE, PREVIEW, Job
from davae.tools.generate.text_source import TextSource


class JobSampler:
    """Draws images of a job, and what is to stand beside them.

    Args:
        job: what is to be drawn.
        first: number of its first image.
        device: to draw on.
        observer: hears of prompts that are too long.
    """

    def __init__(self, job: Job, first: int, device: torch.device, observer: Observer) -> None:
        self._job, self._first, self._facts = job, first, job.facts(device)
        settings = job.settings
        self._pipeline = job.source.load(job.engine, device)
        length = settings.max_length or job.source.max_length
        self._prompts = TypedPrompts(self._pipeline, job.captions, length, settings.negative)
        if self._prompts.warning is not None:
            observer.say(self._prompts.warning)
        job.engine.start(self._pipeline, device)
        self._sampler = TextSampler(self._pipeline, settings.sampler, self._prompts, job.size)
        self._baseline = None if job.baseline is None else self._load_baseline(job.baseline, device)

    def draw(self, unit: Sequence[int]) -> Iterator[list[GeneratedImage]]:
        """Images of a unit, batch by batch."""
        settings = self._job.settings
        for start in range(0, len(unit), settings.batch):
            numbers = unit[start : start + settings.batch]
            indices = [number - self._first for number in numbers]
            kinds, captions = self._images(indices), self._prompts.captions(indices)
            yield [
                GeneratedImage(
                    number,
                    {kind: images[row] for kind, images in kinds.items()},
                    caption,
                    {"prompt": caption, "seed": settings.seed + index, "settings": self._facts},
                )
                for row, (number, index, caption) in enumerate(zip(numbers, indices, captions, strict=True))
            ]

    def _images(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """kind -> uint8 [B, 3, H, W]."""
        latents = self._sampler.latents(indices)
        if rows := bad_rows({"latent": latents}):
            raise FloatingPointError(
                f"Drawing failed: the latent of the image with seed {self._job.settings.seed + indices[rows[0]]} is "
                f"not finite ({len(rows)} of {len(indices)} in its batch). Try --dtype fp32 or less guidance."
            )
        kinds = {IMAGE: self._sampler.images(latents)}
        if self._job.settings.preview:
            kinds[PREVIEW] = preview(self._pipeline, latents)
        if self._baseline is not None:
            kinds[BASELINE] = self._enlarged(self._baseline, self._baseline.latents(indices))
        return kinds

    def _enlarged(self, baseline: TextSampler, latents: Tensor) -> Tensor:
        """The baseline's images at the size of the job."""
        upscaler, size = self._job.upscaler, self._job.size
        if upscaler is None:
            return baseline.images(latents, size)
        return upscaler(baseline.images(latents), size)

    def _load_baseline(self, source: TextSource, device: torch.device) -> TextSampler:
        # Encoded prompts serve both; where the family takes plain text, the baseline's own encoders do.
        takes_plain_text = drawing_backbone(source.pipeline_name).encode_text is None
        engine = self._job.engine
        pipeline = engine.start(source.load(engine, device, with_text=takes_plain_text), device)
        return TextSampler(pipeline, self._job.settings.sampler, self._prompts, self._job.base_size)
