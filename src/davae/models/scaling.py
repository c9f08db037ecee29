"""Owner of latent scaling: how an autoencoder's stored latent becomes what its transformer sees.

Two conventions of diffusers are read here and nowhere else: per-channel `latents_mean` / `latents_std`
(VA-VAE, LightningDiT) and the scalars `scaling_factor` / `shift_factor` (SD, SD3, FLUX, DC-AE).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScaling:
    """normalised = (latent - shift) * scale, per channel.

    Args:
        shift: [K].
        scale: [K], positive.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def of(cls, autoencoder: Any) -> "LatentScaling":
        """The convention that an autoencoder's config declares, for the latent that `encode` emits."""
        config = autoencoder.config
        channels = config.latent_channels
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            return cls(tuple(map(float, mean)), tuple(1 / float(value) for value in std))
        factor = config.get("scaling_factor")
        if factor is None:
            raise ValueError(
                f"{type(autoencoder).__name__} declares neither latents_mean/latents_std nor scaling_factor; "
                f"its latents cannot be normalised. Set one of them in its config."
            )
        shift = config.get("shift_factor") or 0.0  # None in SD, DC-AE and PixArt bases
        return cls((float(shift),) * channels, (float(factor),) * channels)

    def extend(self, shift: Sequence[float], scale: Sequence[float]) -> "LatentScaling":
        """This scaling with further channels appended."""
        return LatentScaling(self.shift + tuple(shift), self.scale + tuple(scale))

    def normalise(self, latent: Tensor) -> Tensor:
        """Stored latent [B, K, h, w] -> the transformer's latent."""
        shift, scale = self._columns(latent)
        return (latent - shift) * scale

    def denormalise(self, latent: Tensor) -> Tensor:
        """The transformer's latent [B, K, h, w] -> stored latent."""
        shift, scale = self._columns(latent)
        return latent / scale + shift

    def _columns(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        if latent.shape[1] != len(self.shift):
            raise ValueError(
                f"Latent scaling knows {len(self.shift)} channels; got a latent of shape {tuple(latent.shape)}. "
                f"Check that the latent comes from this autoencoder."
            )
        column = (1, -1, 1, 1)
        return torch.tensor(self.shift).view(column).to(latent), torch.tensor(self.scale).view(column).to(latent)
