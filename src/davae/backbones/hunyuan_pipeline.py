"""`HunyuanDiTPipelineDA`: the stock Hunyuan-DiT pipeline over an `AutoencoderDA`."""

from typing import Any

from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import HunyuanDiTPipeline
from torch import Tensor


class HunyuanDiTPipelineDA(HunyuanDiTPipeline):
    """Hunyuan-DiT with an upgraded autoencoder.

    The stock pipeline computes rotary positions and the size condition for autoencoders of compression 8. This
    one lets it speak of the base image, which is `scale` times smaller and for which both are right.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        *,
        use_resolution_binning: bool = False,
        **settings: Any,
    ) -> Any:
        """Draw images.

        Args:
            prompt: text.
            height: of the image, pixels; None takes the default size.
            width: of the image, pixels.
            use_resolution_binning: choose the nearest of the standard sizes, which are those of base images.
            settings: the stock pipeline's; `original_size` and `target_size` are those of the base image.

        Raises:
            ValueError: a side does not fit the token grid.
        """
        side = self.default_sample_size * self.vae_scale_factor
        return super().__call__(
            prompt,
            self._base_side(height or side),
            self._base_side(width or side),
            use_resolution_binning=use_resolution_binning,
            **settings,
        )

    def prepare_latents(
        self, batch_size: int, num_channels_latents: int, height: int, width: int, *others: Any
    ) -> Tensor:
        """Noise [batch_size, num_channels_latents, h, w] of a base image's height and width."""
        scale = self.vae.config.scale
        return super().prepare_latents(batch_size, num_channels_latents, scale * height, scale * width, *others)

    def _base_side(self, side: int) -> int:
        unit = 16 * self.vae.config.scale
        if side % unit:
            raise ValueError(
                f"Sides of an image must be multiples of {unit} (16 x scale {self.vae.config.scale}); got {side}. "
                f"Use {max(side // unit, 1) * unit}."
            )
        return side // self.vae.config.scale


# The stored name, as that of davae's other pipelines.
HunyuanDiTPipelineDA.__module__ = "davae"
