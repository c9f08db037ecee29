"""The autoencoder in training, as the objective sees it: images in, reconstruction and latent out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from davae.core.layout import LatentLayout
from davae.core.randomness import normal, uniform
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import BaseFamily, family_of
from davae.train.objective import AutoencoderConfig, ReconstructionConfig, TokenizerConfig
from davae.train.vision import VisionAlignment, VisionProjection


@dataclass
class Reconstruction:
    """An image and what the losses need of its latent.

    Args:
        sample: reconstruction [B, 3, H, W].
        mean: posterior mean [B, K, h, w].
        logvar: its log-variance; None for a deterministic autoencoder.
        latent: the latent that was decoded, as drawn.
        base: base latent, of a structured autoencoder alone; `latent` is then the detail.
        vision: latent and foundation features [B, K, h, w], one of them projected, where the latent is aligned.
    """

    sample: Tensor
    mean: Tensor
    logvar: Tensor | None
    latent: Tensor
    base: Tensor | None = None
    vision: tuple[Tensor, Tensor] | None = None


class Subject(Protocol):
    """The autoencoder being trained."""

    network: nn.Module
    last_weight: nn.Parameter
    """Of the decoder: the adversarial weight is measured here."""
    latent_weight: nn.Parameter
    """Of the layer that makes the latent: alignment weights are measured here."""
    layout: LatentLayout | None
    vision: VisionAlignment | None

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """Run `network` (this subject's, perhaps wrapped) on images in [-1, 1]."""


class StructuredSubject:
    """An `AutoencoderDA` in training."""

    vision = None

    def __init__(self, autoencoder: AutoencoderDA, config: TokenizerConfig, seed: int) -> None:
        self.network, self.config, self.seed = autoencoder, config, seed
        self.layout = autoencoder.layout
        self.last_weight, self.latent_weight = autoencoder.last_weight, autoencoder.detail_weight
        self._compression = autoencoder.compression
        _checkpoint(autoencoder, autoencoder.family, config)
        if config.freeze_encoder_trunk:
            autoencoder.encoder.requires_grad_(False)
            autoencoder.family.head_of(autoencoder.encoder).requires_grad_(True)

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """See `Subject`."""
        grid = (images.shape[-2] // self._compression, images.shape[-1] // self._compression)
        noise = normal(self.seed, "posterior", positions, (self.layout.detail_channels, *grid))
        keep = None
        if self.config.detail_dropout > 0:
            rate = self.config.detail_dropout
            keep = (uniform(self.seed, "detail dropout", positions) >= rate).float()
            keep = keep / (1 - rate) if self.config.dropout_rescale else keep
            keep = keep.to(images.device)
        output = network(images, noise.to(images.device), keep)
        return Reconstruction(output.sample, output.detail_mean, output.detail_logvar, output.detail, output.base)


class PlainAutoencoder(nn.Module):
    """A diffusers autoencoder with one `forward` for training: image and noise in, reconstruction out."""

    def __init__(
        self, autoencoder: Any, latent_noise: float = 0.0, projection: VisionProjection | None = None
    ) -> None:
        super().__init__()
        self.autoencoder, self.projection = autoencoder, projection
        self.latent_noise = latent_noise
        self.family = family_of(type(autoencoder).__name__)

    def forward(self, images: Tensor, noise: Tensor, features: Tensor | None = None) -> Reconstruction:
        """Reconstruct images [B, 3, H, W] in [-1, 1] with standard normals [B, K, h, w] for the latent's draw.

        With a projection, `features` of the images are needed; it is applied here so that it is trained here.
        """
        if self.family.has_posterior:
            posterior = self.autoencoder.encode(images).latent_dist
            mean, logvar = posterior.mean, posterior.logvar
            latent = mean + posterior.std * noise
        else:
            mean, logvar = self.family.encode(self.autoencoder, images), None
            latent = mean + self.latent_noise * noise
        vision = None if self.projection is None else self.projection(latent, features)
        sample = self.family.decode(self.autoencoder, latent)
        return Reconstruction(sample, mean, logvar, latent, vision=vision)


class PlainSubject:
    """A plain autoencoder in training."""

    layout = None

    def __init__(
        self, autoencoder: Any, config: AutoencoderConfig, seed: int, vision: VisionAlignment | None = None
    ) -> None:
        self.seed, self.vision = seed, vision
        family = family_of(type(autoencoder).__name__)
        projection = None if vision is None else vision.projection
        self.network: nn.Module = PlainAutoencoder(autoencoder, config.latent_noise, projection)
        self.last_weight = family.last_weight(autoencoder.decoder)
        self.latent_weight = family.head_of(autoencoder.encoder).weight
        self._channels = family.latent_channels(autoencoder.config)
        self._compression = family.compression(autoencoder.config)
        _checkpoint(autoencoder, family, config)

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """See `Subject`."""
        grid = (images.shape[-2] // self._compression, images.shape[-1] // self._compression)
        noise = normal(self.seed, "posterior", positions, (self._channels, *grid))
        features = None if self.vision is None else self.vision.features(images)
        return network(images, noise.to(images.device), features)


def _checkpoint(autoencoder: Any, family: BaseFamily, config: ReconstructionConfig) -> None:
    if not config.gradient_checkpointing:
        return
    if not family.can_checkpoint:
        raise ValueError(
            f"gradient_checkpointing cannot be used over {family.class_name}: diffusers has none for it, or computes "
            f"another function with it. Set it to false; a smaller batch with accumulation saves memory too."
        )
    autoencoder.enable_gradient_checkpointing()
