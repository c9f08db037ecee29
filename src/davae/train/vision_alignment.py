"""The VF term of VA-VAE training: a latent that a foundation model would recognise (Yao et al. 2025, Eq. 1-5).

The projection is trained with the autoencoder and lives in the network of its learner; the foundation model is
frozen and lives here. Neither is saved with the autoencoder.
"""

from typing import Self

import torch
from torch import Tensor, nn

from davae.core.vision_loss import vision_foundation
from davae.models.vision_features import FoundationFeatures
from davae.train.balance import Term
from davae.train.objective import VisionAlignConfig


class VisionProjection(nn.Module):
    """Brings latent [B, d, h, w] and features [B, K, h, w] to the same channels by a 1x1 convolution (Eq. 1).

    Args:
        latent_channels: d.
        feature_channels: K.
        reverse: project the latent, without a bias; else the features, with one.
    """

    def __init__(self, latent_channels: int, feature_channels: int, reverse: bool = True) -> None:
        super().__init__()
        self.reverse = reverse
        if reverse:
            self.conv = nn.Conv2d(latent_channels, feature_channels, 1, bias=False)
        else:
            self.conv = nn.Conv2d(feature_channels, latent_channels, 1)

    def forward(self, latent: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """(latent, features), one of them projected."""
        return (self.conv(latent), features) if self.reverse else (latent, self.conv(features))


class VisionAlignment:
    """The term of one training.

    Args:
        config: weights, margins, direction.
        features: the frozen model, on the latent's grid.
        latent_channels: d of the latent.
    """

    def __init__(self, config: VisionAlignConfig, features: FoundationFeatures, latent_channels: int) -> None:
        self.config, self.features = config, features
        self.projection = VisionProjection(latent_channels, features.channels, config.reverse_projection)

    @classmethod
    def load(cls, config: VisionAlignConfig, latent_channels: int, grid: int, device: torch.device) -> Self:
        """With the foundation model that the config names, for latents [B, latent_channels, grid, grid]."""
        features = FoundationFeatures.from_pretrained(config.model, grid, config.normalise)
        return cls(config, features.to(device), latent_channels)

    def term(self, pair: tuple[Tensor, Tensor], step: int, parameter: nn.Parameter) -> Term:
        """The VF loss of what the projection returned, with the margins and the weight of the step.

        Args:
            pair: latent and features, one of them projected.
            step: of the training.
            parameter: of the encoder's last convolution, where an adaptive weight is measured (Eq. 4).
        """
        weighting = self.config.weighting(step)
        loss = vision_foundation(*pair, weighting.cosine_margin, weighting.distance_margin)
        return Term("vision", loss, weighting.weight, parameter if self.config.adaptive else None, maximum=1e8)
