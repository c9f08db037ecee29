"""Drawing of `davae generate`: a job that was checked before anything is loaded, and the pipelines that draw it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davae.backbones.registry import backbone_of
from davae.sampling.text import (
    WHOLE,
    decode,
    default_length,
    describe_truncated,
    draw_encoded,
    encode,
    needs_negatives,
    preview,
    require_drawable,
    truncated,
)
from davae.stages.drawing import to_uint8
from davae.stages.generate.engine import Engine
from davae.stages.generate.folder import IMAGE, Drawing
from davae.stages.generate.source import TextSource, digest
from davae.train.journal import Observer

BASELINE, PREVIEW = "baseline", "preview"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is drawn and how it is kept.

    Args:
        height: of the images, pixels; None takes that of its training, else the default.
        width: likewise.
        steps: of the pipeline's scheduler. 30 steps and guidance 2.5 are the paper's, for its SD3.5-Medium.
        guidance: 1 is off.
        guidance_interval: native times (0 = noise, 1 = data) between which guidance is on.
        negative: what guidance leads away from.
        max_length: tokens of the long text encoder; None takes that of its training, else the default.
        seed: of the first image; image i has seed + i.
        count: images a prompt, one after the other.
        batch: images drawn at once; changes nothing about an image but its rounding.
        preview: keep the base channels of the same latents beside every image.
        shards: write captioned tar shards rather than files.
        shard_size: images a shard, which is what an interruption can cost a process.
        form: of the images.
    """

    height: int | None = None
    width: int | None = None
    steps: int = 30
    guidance: float = 2.5
    guidance_interval: tuple[float, float] = WHOLE
    negative: str = ""
    max_length: int | None = None
    seed: int = 0
    count: int = 1
    batch: int = 4
    preview: bool = False
    shards: bool = False
    shard_size: int = 256
    form: Literal["png", "jpg"] = "png"

    def __post_init__(self) -> None:
        for name in ("steps", "count", "batch", "shard_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name.replace('_', ' ')} must be at least 1; got {getattr(self, name)}.")


@dataclass(frozen=True)
class Job:
    """What is to be drawn, checked."""

    source: TextSource
    baseline: TextSource | None
    prompts: list[str]
    settings: Generation
    engine: Engine
    size: tuple[int, int] = field(init=False)
    """Height and width of the images."""

    def __post_init__(self) -> None:
        settings, default = self.settings, self.source.grid.default
        if default is None and (settings.height is None or settings.width is None):
            raise ValueError(f"A {self.source.pipeline_name} has no default size here. Give a height and a width.")
        size = (settings.height or default, settings.width or default)
        object.__setattr__(self, "size", size)
        latent = self.source.grid.latent_size(*size)  # refuses a size
        require_drawable(self.source.pipeline_name, settings.guidance, settings.guidance_interval, settings.negative)
        base, detail = self.source.channels
        if settings.preview and not detail:
            raise ValueError("A preview shows the base channels of an upgraded pipeline; this one is not upgraded.")
        if self.baseline is not None:
            if self.baseline.channels != (base, 0) or self.baseline.pipeline_name != self.source.pipeline_name:
                raise ValueError(
                    f"The baseline must be the pipeline that was upgraded: a {self.source.pipeline_name} of {base} "
                    f"channels; got a {self.baseline.pipeline_name} of {sum(self.baseline.channels)}."
                )
            self.baseline.grid.latent_size(*self.base_size(latent))

    @property
    def captions(self) -> list[str]:
        """Prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.settings.count)]

    @property
    def kinds(self) -> list[str]:
        """What is kept of each image."""
        return [IMAGE, *([PREVIEW] if self.settings.preview else []), *([BASELINE] if self.baseline else [])]

    def base_size(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which the baseline draws a latent of this size."""
        assert self.baseline is not None
        return latent[0] * self.baseline.grid.compression, latent[1] * self.baseline.grid.compression

    def facts(self, device: torch.device) -> dict[str, Any]:
        """All that an image depends on beside its prompt and seed."""
        settings = self.settings
        facts = {
            "pipeline": self.source.identity["path"],
            "height": self.size[0],
            "width": self.size[1],
            "steps": settings.steps,
            "guidance": settings.guidance,
            "guidance_interval": list(settings.guidance_interval),
            "negative": settings.negative,
            "max_length": settings.max_length or self.source.max_length,
            "dtype": self.engine.dtype_on(device),
            "quantize": self.engine.quantize,
            "step_cache": self.engine.step_cache,
        }
        return facts if self.baseline is None else {**facts, "baseline": self.baseline.identity["path"]}

    def inputs(self, device: torch.device) -> dict[str, Any]:
        """All that a folder of images depends on."""
        names = ("seed", "count", "form", "shards", *(["shard_size"] if self.settings.shards else []))
        kept = {name: asdict(self.settings)[name] for name in names}
        sources = {"source": self.source.identity, "baseline": self.baseline and self.baseline.identity}
        prompts = {"prompts": f"{len(self.prompts)}, {digest(self.prompts)}", "first_prompt": self.prompts[0]}
        return {**self.facts(device), **kept, **sources, **prompts, "kinds": self.kinds}


class Artist:
    """Loaded pipelines that draw a job."""

    def __init__(self, job: Job, device: torch.device, observer: Observer) -> None:
        self.job, self.device, engine = job, device, job.engine
        self.pipe = job.source.load(engine, device)
        self.length = job.settings.max_length or job.source.max_length or default_length(self.pipe)
        if cut := truncated(self.pipe, job.prompts, self.length):
            observer.say(describe_truncated(cut, self.length))
        engine.start(self.pipe, device)
        self.base = None if job.baseline is None else engine.start(self._load_base(job.baseline), device)
        self.captions, self.facts = job.captions, job.facts(device)
        self.negatives: Mapping[str, Any] | None = None
        if needs_negatives(self.pipe, job.settings.guidance):
            self.negatives = encode(self.pipe, [job.settings.negative], self.length)

    def draw(self, unit: Sequence[int], report: Callable[[int], None]) -> Iterator[list[Drawing]]:
        """A unit, batch by batch; `report` hears how many of its images are drawn."""
        settings = self.job.settings
        for start in range(0, len(unit), settings.batch):
            indices = list(unit[start : start + settings.batch])
            images = self._images(indices)
            facts = [
                {"prompt": self.captions[index], "seed": settings.seed + index, "settings": self.facts}
                for index in indices
            ]
            yield [
                (index, {kind: stack[row] for kind, stack in images.items()}, facts[row])
                for row, index in enumerate(indices)
            ]
            report(start + len(indices))

    def _images(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """kind -> uint8 [B, 3, H, W]."""
        settings, size = self.job.settings, self.job.size
        seeds = [settings.seed + index for index in indices]
        conditions = encode(self.pipe, [self.captions[index] for index in indices], self.length)
        latents = self._latents(self.pipe, conditions, seeds, size)
        images = {IMAGE: to_uint8(decode(self.pipe, latents))}
        if settings.preview:
            images[PREVIEW] = to_uint8(preview(self.pipe, latents))
        if self.base is not None:
            small = self.job.base_size(self.job.source.grid.latent_size(*size))
            drawn = to_uint8(decode(self.base, self._latents(self.base, conditions, seeds, small)))
            images[BASELINE] = torch.stack([_enlarged(image, size) for image in drawn])
        return images

    def _latents(
        self, pipe: Any, conditions: Mapping[str, Any], seeds: Sequence[int], size: tuple[int, int]
    ) -> Tensor:
        settings = self.job.settings
        return draw_encoded(
            pipe,
            conditions,
            self.negatives,
            seeds,
            height=size[0],
            width=size[1],
            steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_interval=settings.guidance_interval,
        )

    def _load_base(self, baseline: TextSource) -> Any:
        # Encoded prompts serve both; where the family takes plain text, its own encoders do.
        is_plain = backbone_of(self.pipe.transformer).encode_text is None
        return baseline.load(self.job.engine, self.device, with_text=is_plain)


def _enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] at another height and width, by Pillow's bicubic filter as in the reference's baseline."""
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(pixels.resize((size[1], size[0]), Image.Resampling.BICUBIC))).permute(2, 0, 1)
