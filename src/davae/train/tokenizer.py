"""Tokenizer training: reconstruction, KL, detail alignment and an adversarial term (method, Eq. 3-6).

One task serves both the structured autoencoder (frozen base, detail encoder, joint decoder) and a plain
autoencoder that is trained from scratch to become somebody's base.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from davae.core.config import Config
from davae.core.layout import LatentLayout
from davae.core.losses import (
    alignment,
    gradient_ratio,
    hinge_discriminator,
    hinge_generator,
    kl_divergence,
    kl_divergence_sum,
)
from davae.core.randomness import normal, uniform
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.models.discriminator import PatchDiscriminator
from davae.train.feed import Batch
from davae.train.loop import Learner, LoopConfig, Loss, OptimConfig


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Config):
    """PatchGAN with an adaptive weight (VQGAN): weight * |grad of reconstruction| / |grad of generator term|."""

    weight: float = 0.1
    start_step: int = 5001
    """Steps before the discriminator begins."""
    width: int = 64
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.5, 0.9)))


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Config):
    """LPIPS on VGG16; both weight files are public (see `davae.models.perceptual`)."""

    vgg: str
    """Path of torchvision's VGG16 weights."""
    linear: str
    """Path of the LPIPS v0.1 linear weights."""
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(LoopConfig):
    """What every autoencoder training has."""

    l1_weight: float = 1.0
    kl_weight: float = 1e-6
    kl_reduction: Literal["mean", "sum"] = "mean"
    """"mean" over all elements without the 1/2 (ImageNet branch), or "sum" over a sample with it (VA-VAE)."""
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ReconstructionConfig):
    """Training of an `AutoencoderDA`."""

    scale: int = 2
    """s: how many times larger the image of the same token grid becomes, a side."""
    detail_channels: int | None = None
    """D; null takes the base's number of channels."""
    clamp_base_image: bool = False
    """Clamp the downsampled image to [-1, 1] (the text-to-image branch does)."""
    align_weight: float = 0.5
    """Weight of the detail alignment; with `align_adaptive` a ratio of gradient norms."""
    align_adaptive: bool = True
    detail_dropout: float = 0.1
    """Share of samples whose detail the decoder does not see."""
    dropout_rescale: bool = False
    """Divide kept details by 1 - detail_dropout, as the reference does although its evaluation never does."""
    calibration_images: int = 2048
    """Images over which the statistics of the detail channels are measured after training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.detail_dropout < 1:
            raise ValueError(f"detail_dropout must be in [0, 1); got {self.detail_dropout}")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ReconstructionConfig):
    """Training of a plain autoencoder from scratch."""

    latent_noise: float = 0.0
    """Standard deviation of fixed latent noise, for autoencoders without a posterior (AutoencoderDC)."""


@dataclass
class Reconstruction:
    """An image and what the losses need of its latent. `logvar` is None for a deterministic autoencoder."""

    sample: Tensor
    mean: Tensor
    logvar: Tensor | None
    base: Tensor | None = None
    detail: Tensor | None = None


class Perceptual(Protocol):
    """A distance of images [B, 3, H, W] in [-1, 1]: [B]."""

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances of pairs."""


class Subject(Protocol):
    """The autoencoder being trained, as the task sees it."""

    network: nn.Module
    last_weight: nn.Parameter
    latent_weight: nn.Parameter
    layout: LatentLayout | None

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """Run `network` (this subject's, perhaps wrapped) on images in [-1, 1]."""


class StructuredSubject:
    """An `AutoencoderDA` in training."""

    def __init__(self, autoencoder: AutoencoderDA, config: TokenizerConfig, seed: int) -> None:
        self.network, self.config, self.seed = autoencoder, config, seed
        self.layout = autoencoder.layout
        self.last_weight, self.latent_weight = autoencoder.last_weight, autoencoder.detail_weight
        self._compression = autoencoder.compression

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
        return Reconstruction(output.sample, output.detail_mean, output.detail_logvar, output.base, output.detail)


class PlainAutoencoder(nn.Module):
    """A diffusers autoencoder with one `forward` for training: image and noise in, reconstruction out."""

    def __init__(self, autoencoder: Any, latent_noise: float = 0.0) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.latent_noise = latent_noise
        self.has_posterior = type(autoencoder).__name__ == "AutoencoderKL"

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(reconstruction, posterior mean, posterior log-variance or None)."""
        if self.has_posterior:
            posterior = self.autoencoder.encode(images).latent_dist
            latent = posterior.mean + posterior.std * noise
            return self.autoencoder.decode(latent).sample, posterior.mean, posterior.logvar
        mean = self.autoencoder.encode(images).latent
        return self.autoencoder.decode(mean + self.latent_noise * noise).sample, mean, None


class PlainSubject:
    """A plain autoencoder in training."""

    layout = None

    def __init__(self, autoencoder: Any, config: AutoencoderConfig, seed: int) -> None:
        self.seed = seed
        family = family_of(type(autoencoder).__name__)
        self.network = PlainAutoencoder(autoencoder, config.latent_noise)
        self.last_weight = family.last_weight(autoencoder.decoder)
        self.latent_weight = autoencoder.encoder.conv_out.weight
        self._channels = family.latent_channels(autoencoder.config)
        self._compression = 2 ** (len(family.block_out_channels(autoencoder.config)) - 1)

    def reconstruct(self, network: nn.Module, images: Tensor, positions: Sequence[int]) -> Reconstruction:
        """See `Subject`."""
        grid = (images.shape[-2] // self._compression, images.shape[-1] // self._compression)
        noise = normal(self.seed, "posterior", positions, (self._channels, *grid))
        return Reconstruction(*network(images, noise.to(images.device)))


class TokenizerTask:
    """The objective. Learners: "autoencoder", and "discriminator" where the adversarial term is on.

    Args:
        subject: what is trained.
        config: weights of the terms; of `TokenizerConfig` the alignment is read too.
        perceptual: distance network, frozen and in eval mode; None leaves the term out.
        reduce_gradient: averages a gradient over processes, so that adaptive weights are those of the
            global batch.
    """

    def __init__(
        self,
        subject: Subject,
        config: ReconstructionConfig,
        perceptual: Perceptual | None = None,
        reduce_gradient: Any = None,
    ) -> None:
        self.subject, self.config, self.perceptual = subject, config, perceptual
        self._reduce = reduce_gradient or (lambda gradient: gradient)
        self.learners = {
            "autoencoder": Learner(subject.network, config.optim, config.ema_decay, config.ema_ramp),
        }
        self.discriminator: PatchDiscriminator | None = None
        if config.adversarial is not None:
            self.discriminator = PatchDiscriminator(width=config.adversarial.width)
            self.learners["discriminator"] = Learner(self.discriminator, config.adversarial.optim)
        self._images: Tensor | None = None
        self._fakes: Tensor | None = None

    def is_active(self, learner: str, step: int) -> bool:
        """The discriminator waits for its start step."""
        return learner == "autoencoder" or self._adversarial_runs(step)

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """See `Task`. The discriminator judges the reconstructions that the autoencoder just made."""
        if learner == "autoencoder":
            return self._autoencoder_loss(network, batch, step)
        assert self._images is not None and self._fakes is not None
        loss = hinge_discriminator(network(self._images).float(), network(self._fakes).float())
        return loss, {}

    def _autoencoder_loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        # Channels last: convolutions and norms over channels then need no transposition, here and downstream.
        images = (batch["image"].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        result = self.subject.reconstruct(network, images, batch["position"].tolist())
        fakes = result.sample.float()
        self._images, self._fakes = images, fakes.detach()

        pixel = (images - fakes).abs().mean()
        reference = self.config.l1_weight * pixel
        values = {"l1": pixel.detach(), "psnr": _psnr(images, fakes)}
        if self.perceptual is not None and self.config.perceptual is not None:
            distance = self.perceptual(fakes, images).mean()
            reference = reference + self.config.perceptual.weight * distance
            values["perceptual"] = distance.detach()

        total = reference + self._kl(result, values) + self._alignment(result, reference, values)
        if self._adversarial_runs(step):
            total = total + self._adversarial(fakes, reference, values)
        return total, values

    def _kl(self, result: Reconstruction, values: dict[str, Tensor]) -> Tensor:
        mean = result.mean.float()
        logvar = torch.zeros_like(mean) if result.logvar is None else result.logvar.float()
        kl = (kl_divergence if self.config.kl_reduction == "mean" else kl_divergence_sum)(mean, logvar)
        values["kl"] = kl.detach()
        return self.config.kl_weight * kl

    def _alignment(self, result: Reconstruction, reference: Tensor, values: dict[str, Tensor]) -> Tensor:
        config, layout = self.config, self.subject.layout
        if layout is None or not isinstance(config, TokenizerConfig):
            return reference.new_zeros(())
        assert result.base is not None and result.detail is not None
        if config.align_weight == 0 and layout.detail_channels < layout.base_channels:
            return reference.new_zeros(())
        loss = alignment(layout, result.detail.float(), result.base.float())
        values["align"] = loss.detach()
        if config.align_weight == 0:
            return reference.new_zeros(())
        weight = config.align_weight
        if config.align_adaptive:
            ratio = self._ratio(reference, loss, self.subject.latent_weight, maximum=1e8)
            values["align_weight"] = weight * ratio
            return weight * ratio * loss
        return weight * loss

    def _adversarial(self, fakes: Tensor, reference: Tensor, values: dict[str, Tensor]) -> Tensor:
        assert self.discriminator is not None and self.config.adversarial is not None
        # The discriminator is a judge here; its own gradients come from its own loss.
        self.discriminator.requires_grad_(False)
        loss = hinge_generator(self.discriminator(fakes).float())
        ratio = self._ratio(reference, loss, self.subject.last_weight, maximum=1e4)
        self.discriminator.requires_grad_(True)
        values["adversarial"] = loss.detach()
        return self.config.adversarial.weight * ratio * loss

    def _ratio(self, reference: Tensor, term: Tensor, weight: nn.Parameter, maximum: float) -> Tensor:
        (numerator,) = torch.autograd.grad(reference, weight, retain_graph=True)
        (denominator,) = torch.autograd.grad(term, weight, retain_graph=True)
        return gradient_ratio([self._reduce(numerator)], [self._reduce(denominator)], maximum=maximum)

    def _adversarial_runs(self, step: int) -> bool:
        return self.config.adversarial is not None and step >= self.config.adversarial.start_step


def _psnr(images: Tensor, fakes: Tensor) -> Tensor:
    """Mean PSNR in dB of images in [-1, 1], for the journal."""
    error = (images - fakes.detach().clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()
