"""The loaded pipelines that draw a job."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from davae.backbones.registry import drawing_backbone
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
        device: to draw on.
        observer: hears of prompts that are too long.
    """

    def __init__(self, job: Job, device: torch.device, observer: Observer) -> None:
        self._job, self._facts = job, job.facts(device)
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
            indices = unit[start : start + settings.batch]
            kinds, captions = self._images(indices), self._prompts.captions(indices)
            yield [
                GeneratedImage(
                    index,
                    {kind: images[row] for kind, images in kinds.items()},
                    caption,
                    {"prompt": caption, "seed": settings.seed + index, "settings": self._facts},
                )
                for row, (index, caption) in enumerate(zip(indices, captions, strict=True))
            ]

    def _images(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """kind -> uint8 [B, 3, H, W]."""
        latents = self._sampler.latents(indices)
        kinds = {IMAGE: self._sampler.images(latents)}
        if self._job.settings.preview:
            kinds[PREVIEW] = preview(self._pipeline, latents)
        if self._baseline is not None:
            kinds[BASELINE] = self._baseline.images(self._baseline.latents(indices), self._job.size)
        return kinds

    def _load_baseline(self, source: TextSource, device: torch.device) -> TextSampler:
        # Encoded prompts serve both; where the family takes plain text, the baseline's own encoders do.
        takes_plain_text = drawing_backbone(source.pipeline_name).encode_text is None
        engine = self._job.engine
        pipeline = engine.start(source.load(engine, device, with_text=takes_plain_text), device)
        return TextSampler(pipeline, self._job.settings.sampler, self._prompts, self._job.base_size)
