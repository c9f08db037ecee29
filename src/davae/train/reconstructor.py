"""The autoencoder in training, as the objective sees it: images in, reconstruction and latent out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from davae.core.layout import LatentLayout
from davae.core.randomness import normal, uniform
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import BaseFamily, family_of, weight_of
from davae.train.objective import AutoencoderConfig, ReconstructionConfig, TokenizerConfig
from davae.train.vision_alignment import VisionAlignment, VisionProjection


@dataclass
class Reconstruction:
    """An image and what the losses need of its latent.

    Args:
        sample: reconstruction [B, 3, H, W].
        mean: posterior mean [B, K, h, w].
        logvar: its log-variance; None for a deterministic autoencoder.
        latent: the latent that was decoded, as drawn.
        base: base latent, of an upgraded autoencoder alone; `latent` is then the detail.
        vision: latent and foundation features [B, K, h, w], one of them projected, where the latent is aligned.
    """

    sample: Tensor
    mean: Tensor
    logvar: Tensor | None
    latent: Tensor
    base: Tensor | None = None
    vision: tuple[Tensor, Tensor] | None = None


class Reconstructor(Protocol):
    """An autoencoder in training, plain or upgraded."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the decoder: the adversarial weight is measured here."""

    @property
    def latent_weight(self) -> nn.Parameter:
        """Of the layer that makes the latent: alignment weights are measured here."""

    @property
    def layout(self) -> LatentLayout | None:
        """Base and detail channels; a plain autoencoder has none to tell apart."""

    @property
    def vision(self) -> VisionAlignment | None:
        """The alignment to a vision foundation model, where there is one."""

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """Run `network`, perhaps wrapped, on images [B, 3, H, W] in [-1, 1].

        Args:
            network: this reconstructor's, as the loop hands it to the task.
            images: see above; on the network's device.
            positions: of the images in the training sequence, from which everything random is drawn.
        """


class UpgradedReconstructor:
    """An `AutoencoderDA` in training: detail encoder and decoder move, the base stands still.

    Args:
        autoencoder: is changed: what the config freezes does not require gradients any more.
        config: dropout of details, what is frozen, gradient checkpointing.
        seed: of the posterior's noise and of the dropout.

    Raises:
        ValueError: the base has no gradient checkpointing, and the config asks for it.
    """

    vision: VisionAlignment | None = None

    def __init__(self, autoencoder: AutoencoderDA, config: TokenizerConfig, seed: int) -> None:
        self.network, self.config, self.seed = autoencoder, config, seed
        self.layout = autoencoder.layout
        self.last_weight, self.latent_weight = autoencoder.last_weight, autoencoder.detail_weight
        self._compression = autoencoder.compression
        _recompute_activations(autoencoder, autoencoder.family, config)
        if config.freeze_encoder_trunk:
            autoencoder.encoder.requires_grad_(False)
            autoencoder.family.head_of(autoencoder.encoder).requires_grad_(True)

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """See `Reconstructor`."""
        shape = (self.layout.detail_channels, *_grid(images, self._compression))
        noise = normal(self.seed, "posterior", positions, shape)
        keep = None
        if self.config.detail_dropout > 0:
            rate = self.config.detail_dropout
            keep = (uniform(self.seed, "detail dropout", positions) >= rate).float()
            keep = keep / (1 - rate) if self.config.dropout_rescale else keep
            keep = keep.to(images.device)
        output = network(images, noise.to(images.device), keep)
        return Reconstruction(output.sample, output.detail_mean, output.detail_logvar, output.detail, output.base)


class PlainNetwork(nn.Module):
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


class PlainReconstructor:
    """A plain autoencoder in training.

    Args:
        autoencoder: a diffusers autoencoder of a known family.
        config: noise on the latent, gradient checkpointing.
        seed: of the posterior's noise.
        vision: aligns the latent; its projection is trained along.

    Raises:
        ValueError: the family is unknown, or has no gradient checkpointing and the config asks for it.
    """

    layout: LatentLayout | None = None

    def __init__(
        self, autoencoder: Any, config: AutoencoderConfig, seed: int, vision: VisionAlignment | None = None
    ) -> None:
        self.seed, self.vision = seed, vision
        family = family_of(type(autoencoder).__name__)
        projection = None if vision is None else vision.projection
        self.network: nn.Module = PlainNetwork(autoencoder, config.latent_noise, projection)
        self.last_weight = family.last_weight(autoencoder.decoder)
        self.latent_weight = weight_of(autoencoder.encoder, family.head(autoencoder.encoder))
        self._channels = family.latent_channels(autoencoder.config)
        self._compression = family.compression(autoencoder.config)
        _recompute_activations(autoencoder, family, config)

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """See `Reconstructor`."""
        noise = normal(self.seed, "posterior", positions, (self._channels, *_grid(images, self._compression)))
        features = None if self.vision is None else self.vision.features(images)
        return network(images, noise.to(images.device), features)


def _grid(images: Tensor, compression: int) -> tuple[int, int]:
    return images.shape[-2] // compression, images.shape[-1] // compression


def _recompute_activations(autoencoder: Any, family: BaseFamily, config: ReconstructionConfig) -> None:
    if not config.gradient_checkpointing:
        return
    if not family.can_checkpoint:
        raise ValueError(
            f"gradient_checkpointing cannot be used over {family.class_name}: diffusers has none for it, or computes "
            f"another function with it. Set it to false; a smaller batch with accumulation saves memory too."
        )
    autoencoder.enable_gradient_checkpointing()
