"""Drawing classes with a `LightningDiTPipeline`."""

from collections.abc import Sequence

from torch import Tensor

from davae.core.randomness import uniform
from davae.sampling import sampler
from davae.sampling.denoise import draw_noise
from davae.sampling.guidance import guide_all, guide_first
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline
from davae.sampling.settings import Labels, SamplerSettings, check_guided_channels


class ClassSampler:
    """A `Sampler` of classes.

    Args:
        pipeline: on its device.
        settings: seeds, steps and guidance.
        labels: see `Labels`.

    Raises:
        ValueError: guidance is asked for on more channels than there are.
    """

    def __init__(
        self, pipeline: LightningDiTPipeline, settings: SamplerSettings, labels: Labels = "balanced"
    ) -> None:
        check_guided_channels(settings.guidance_channels, pipeline.transformer.config["in_channels"])
        self.pipeline, self.settings, self._labels = pipeline, settings, labels
        pipeline.set_progress_bar_config(disable=True)

    @property
    def warning(self) -> None:
        """See `Sampler`."""
        return None

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Class of each image."""
        count = self.pipeline.transformer.config["num_classes"]
        if self._labels == "balanced":
            return [index % count for index in indices]
        return [int(draw * count) for draw in uniform(self.settings.seed, "sample label", indices).tolist()]

    def latents(self, indices: Sequence[int]) -> Tensor:
        """See `Sampler`."""
        settings, transformer = self.settings, self.pipeline.transformer
        side, guided = transformer.config["sample_size"], settings.guidance_channels
        shape = (transformer.config["in_channels"], side, side)
        noise = draw_noise([settings.seed + index for index in indices], shape)
        with sampler.computing(transformer, settings.precision):
            return self.pipeline(
                self.labels(indices),
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                guidance_interval=settings.guidance_interval,
                guidance=guide_all if guided is None else guide_first(guided),
                latents=noise,
                output_type="latent",
            ).images

    def images(self, latents: Tensor, size: int | tuple[int, int] | None = None) -> Tensor:
        """See `Sampler`."""
        return sampler.decode(self.pipeline, latents, size)

    def captions(self, indices: Sequence[int]) -> list[str]:
        """See `Sampler`."""
        return [f"class {label}" for label in self.labels(indices)]
