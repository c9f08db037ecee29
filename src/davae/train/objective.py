"""Settings of an autoencoder's training objective: its terms and their weights (method, Eq. 3-6 and Table S1)."""

from dataclasses import dataclass, field
from typing import Literal

from davae.core.config import Config
from davae.train.settings import LoopConfig, OptimConfig
from davae.train.vision_alignment import VisionAlignConfig


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Config):
    """PatchGAN with hinge losses."""

    weight: float = 0.1
    """Weight of the generator's term; with `adaptive` a share of the reconstruction's gradient norm."""
    adaptive: bool = True
    """Weigh by |grad of reconstruction| / |grad of generator term| at the decoder's last layer (VQGAN)."""
    start_step: int = 5001
    """Steps before the discriminator begins."""
    width: int = 64
    """Channels of the discriminator's first layer."""
    lecam_weight: float = 0.0
    """Weight of the LeCam regulariser of the discriminator; 0 leaves it out."""
    lecam_decay: float = 0.999
    """Of the running means of the discriminator's answers that LeCam holds on to."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.5, 0.9)))
    """AdamW of the discriminator."""

    def __post_init__(self) -> None:
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"lecam_decay must lie in [0, 1); got {self.lecam_decay}")


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Config):
    """LPIPS on VGG16. Without paths the public weights are taken from the cache, and fetched into it once."""

    vgg: str | None = None
    """VGG16 weights: the public .pth file, or a .safetensors conversion of it."""
    linear: str | None = None
    """Linear layers of LPIPS v0.1, likewise."""
    weight: float = 1.0
    """Weight of the distance beside L1."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(LoopConfig):
    """What every autoencoder training has."""

    crop_from: int | None = None
    """Side that images are brought to before a random window of the training size is cut out; null: whole images."""
    flip: bool = True
    """Mirror half of the images."""
    l1_weight: float = 1.0
    """Weight of the mean absolute error of pixels in [-1, 1]."""
    reconstruction_reduction: Literal["mean", "sum"] = "mean"
    """Of L1 and perceptual distance together: the mean over all elements, or the sum over an image (VA-VAE)."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence of the trained latent from a standard normal."""
    kl_reduction: Literal["mean", "sum"] = "mean"
    """The mean over all elements without the 1/2 (ImageNet branch), or the sum over a sample with it (VA-VAE)."""
    perceptual: PerceptualConfig | None = None
    """LPIPS on VGG16 as a part of the reconstruction; null leaves it out, {} takes it as it is."""
    adversarial: AdversarialConfig | None = None
    """A PatchGAN that judges reconstructions; null leaves it out."""
    adaptive_every: int = 1
    """Steps between two measurements of adaptive weights, which cost partial backward passes; the last measured
    ratio serves in between. 1 is the reference."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adaptive_every < 1:
            raise ValueError(f"adaptive_every must be at least 1; got {self.adaptive_every}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ReconstructionConfig):
    """Training of an `AutoencoderDA`."""

    scale: int = 2
    """s: how many times larger the image of the same token grid becomes, a side."""
    detail_channels: int | None = None
    """D; null takes the base's number of channels."""
    clamp_base_image: bool = False
    """Clamp the downsampled image to [-1, 1] (the text-to-image branch does)."""
    base_units: Literal["raw", "scaled"] = "raw"
    """Units of the base latent in the decoder and as the alignment's target (the text-to-image branch scales it)."""
    warm_start: bool = False
    """Start the two new blocks from the base's own head and stem instead of from random weights; ours."""
    freeze_encoder_trunk: bool = False
    """Train the down block and the decoder alone, as the authors' text-to-image script does."""
    align_weight: float = 0.5
    """Weight of the detail alignment; with `align_adaptive` a share of the reconstruction's gradient norm."""
    align_adaptive: bool = True
    """Weigh by |grad of reconstruction| / |grad of alignment| at the layer that makes the detail latent."""
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
    vision: VisionAlignConfig | None = None
    """Alignment of the latent to a vision foundation model (VA-VAE)."""
