"""The VF term of VA-VAE training: a latent that a foundation model would recognise (Yao et al. 2025, Eq. 1-5).

The projection is trained with the autoencoder and lives in the network of its learner; the foundation model is
frozen and lives here. Neither is saved with the autoencoder.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from davae.core.config import Config
from davae.core.vision_loss import vision_foundation
from davae.models.vision_features import FoundationFeatures
from davae.train.balance import Term


@dataclass(frozen=True, kw_only=True)
class VisionWeighting(Config):
    """Weight and margins of the VF loss from a step on."""

    from_step: int = 0
    """Step from which this holds, until the next one begins."""
    weight: float = 0.1
    """Weight of the term; with `adaptive` a share of the reconstruction's gradient norm."""
    cosine_margin: float = 0.5
    """Positions are left alone once their cosine is above 1 - margin."""
    distance_margin: float = 0.25
    """Pairs of positions are left alone once their cosines differ by less."""

    def __post_init__(self) -> None:
        for name in ("from_step", "cosine_margin", "distance_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}")
        if self.weight <= 0:  # several processes could not agree on a projection that nothing trains
            raise ValueError(f"weight must be positive; got {self.weight}. Leave the section out to train without")


@dataclass(frozen=True, kw_only=True)
class VisionAlignConfig(Config):
    """Alignment of the latent to a vision foundation model; the defaults are VA-VAE's plain configuration."""

    model: str
    """Folder of a saved DINOv2 or MAE of transformers, or its id on the Hugging Face hub."""
    normalise: bool = False
    """Normalise images by ImageNet's mean and deviation before the foundation model; the reference does not."""
    reverse_projection: bool = True
    """Project the latent onto the features' channels, which stay as they are; false projects the features."""
    adaptive: bool = True
    """Weigh by the ratio of gradient norms, |reconstruction| / |VF loss|, at the encoder's last convolution."""
    phases: tuple[VisionWeighting, ...] = (VisionWeighting(),)
    """In order of `from_step`, the first from step 0. One run with several is one resumable training."""

    def __post_init__(self) -> None:
        starts = [weighting.from_step for weighting in self.phases]
        if not starts or starts[0] != 0 or any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"phases must start at step 0 and then at later and later steps; got {starts}")

    def weighting(self, step: int) -> VisionWeighting:
        """Weight and margins at a step: the last that began."""
        return next(weighting for weighting in reversed(self.phases) if weighting.from_step <= step)


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
