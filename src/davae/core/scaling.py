"""Owner of latent scaling: how an autoencoder's stored latent becomes what its transformer sees.

Which scaling an autoencoder declares is read in `models/declared_scaling.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LatentScaling:
    """normalised = (latent - shift) * scale.

    Args:
        shift: [K patch^2]: of a channel, or of each phase of a channel (index k * patch^2 + patch * dy + dx).
        scale: [K patch^2], positive.
        patch: side of the patches whose positions have statistics of their own; 1 where only channels do.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    patch: int = 1

    @property
    def channels(self) -> int:
        """K."""
        return len(self.shift) // self.patch**2

    def extend(self, shift: Sequence[float], scale: Sequence[float]) -> "LatentScaling":
        """This scaling with further channels appended, one value a channel."""
        phases = range(self.patch**2)
        return LatentScaling(
            self.shift + tuple(value for value in shift for _ in phases),
            self.scale + tuple(value for value in scale for _ in phases),
            self.patch,
        )

    def normalise(self, latent: Tensor) -> Tensor:
        """Stored latent [B, K, h, w] -> the transformer's latent."""
        shift, scale = self._columns(latent)
        return self._unpack((self._pack(latent) - shift) * scale)

    def denormalise(self, latent: Tensor) -> Tensor:
        """The transformer's latent [B, K, h, w] -> stored latent."""
        shift, scale = self._columns(latent)
        return self._unpack(self._pack(latent) / scale + shift)

    def _pack(self, latent: Tensor) -> Tensor:
        return latent if self.patch == 1 else F.pixel_unshuffle(latent, self.patch)

    def _unpack(self, packed: Tensor) -> Tensor:
        return packed if self.patch == 1 else F.pixel_shuffle(packed, self.patch)

    def _columns(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        if latent.shape[1] != self.channels or any(side % self.patch for side in latent.shape[-2:]):
            raise ValueError(
                f"Latent scaling knows {self.channels} channels and sides that are multiples of {self.patch}; got a "
                f"latent of shape {tuple(latent.shape)}. Check that the latent comes from this autoencoder."
            )
        column = (1, -1, 1, 1)
        return torch.tensor(self.shift).view(column).to(latent), torch.tensor(self.scale).view(column).to(latent)
