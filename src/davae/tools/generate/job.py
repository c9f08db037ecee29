"""What `davae generate` is asked for, checked before anything is loaded."""

from dataclasses import dataclass, field
from typing import Any

import torch

from davae.sampling.engine import Engine
from davae.sampling.image_formats import IMAGE
from davae.sampling.stock_text import require_drawable
from davae.sampling.upscaling import Upscaler, refusal
from davae.tools.generate.settings import Generation
from davae.tools.generate.text_source import TextSource

BASELINE, PREVIEW = "baseline", "preview"
"""What may stand beside an image: the pretrained pipeline's, enlarged; the base channels of the same latent."""


@dataclass(frozen=True)
class Job:
    """What is to be drawn.

    Args:
        source: the pipeline.
        baseline: the pretrained pipeline that was upgraded, to draw beside it.
        prompts: what is drawn.
        settings: how it is drawn and kept.
        engine: how the pipelines run.
        upscaler: what enlarges the baseline's images; None enlarges them bicubically, before they are rounded.

    Raises:
        ValueError: size, guidance, preview, baseline or upscaler cannot be had from these pipelines.
    """

    source: TextSource
    baseline: TextSource | None
    prompts: list[str]
    settings: Generation
    engine: Engine
    upscaler: Upscaler | None = None
    size: tuple[int, int] = field(init=False)
    """Height and width of the images."""

    def __post_init__(self) -> None:
        settings, default = self.settings, self.source.grid.default
        height, width = (default if side is None else side for side in (settings.height, settings.width))
        if height is None or width is None:
            raise ValueError(f"A {self.source.pipeline_name} has no default size here. Give a height and a width.")
        object.__setattr__(self, "size", (height, width))
        self.source.grid.latent_size(height, width)  # refuses a size
        require_drawable(self.source.pipeline_name, settings.guidance, settings.guidance_interval, settings.negative)
        if settings.preview and not self.source.layout.detail_channels:
            raise ValueError("A preview shows the base channels of an upgraded pipeline; this one is not upgraded.")
        if self.baseline is not None:
            self._check_baseline(self.baseline)
        if self.upscaler is not None:
            self._check_upscaler(self.upscaler)

    @property
    def captions(self) -> list[str]:
        """Prompt of each image."""
        return [prompt for prompt in self.prompts for _ in range(self.settings.count)]

    @property
    def kinds(self) -> list[str]:
        """What is kept of each image."""
        return [IMAGE, *([PREVIEW] if self.settings.preview else []), *([BASELINE] if self.baseline else [])]

    @property
    def base_size(self) -> tuple[int, int]:
        """Height and width at which the baseline draws the same latent grid."""
        assert self.baseline is not None
        height, width = self.source.grid.latent_size(*self.size)
        return height * self.baseline.grid.compression, width * self.baseline.grid.compression

    def facts(self, device: torch.device) -> dict[str, Any]:
        """All that an image depends on beside its prompt and seed."""
        settings = self.settings
        facts = {
            "pipeline": self.source.path,
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
        if self.baseline is not None:
            facts["baseline"] = self.baseline.path
        if self.upscaler is not None:
            facts["upscaler"] = dict(self.upscaler.identity)
        return facts

    def content(self, device: torch.device) -> dict[str, Any]:
        """All that images depend on beside prompt and seed, wherever the weights lie; and what is kept of each."""
        facts = {name: value for name, value in self.facts(device).items() if name not in ("pipeline", "baseline")}
        baseline = None if self.baseline is None else self.baseline.identity
        return {**facts, "source": self.source.identity, "baseline": baseline, "kinds": self.kinds}

    def _check_baseline(self, baseline: TextSource) -> None:
        base = self.source.layout.base_channels
        layout = baseline.layout
        is_base = layout.base_channels == base and not layout.detail_channels
        if not is_base or baseline.pipeline_name != self.source.pipeline_name:
            raise ValueError(
                f"The baseline must be the pipeline that was upgraded: a {self.source.pipeline_name} of {base} "
                f"channels; got a {baseline.pipeline_name} of {layout.channels}."
            )
        baseline.grid.latent_size(*self.base_size)

    def _check_upscaler(self, upscaler: Upscaler) -> None:
        if self.baseline is None:
            raise ValueError("An upscaler enlarges the baseline's images; there is no baseline. Add --baseline.")
        if reason := refusal(upscaler, self.base_size, self.size):
            raise ValueError(f"The baseline's images cannot be enlarged: {reason}. Take another upscaler.")
