"""Settings of an autoencoder's training objective: its terms and their weights (method, Eq. 3-6 and Table S1)."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

from davae.core.config import Amount, Config, Count, FilePath, Number, PathOrName, Positive, Range, Share, Side, Whole
from davae.train.settings import LoopConfig, OptimConfig


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Config):
    """PatchGAN with hinge losses."""

    weight: Amount = 0.1
    """Weight of the generator's term; with `adaptive` a share of the reconstruction's gradient norm."""
    adaptive: bool = True
    """Weigh by |grad of reconstruction| / |grad of generator term| at the decoder's last layer (VQGAN)."""
    start_step: Whole = 5001
    """Steps before the discriminator begins."""
    width: Count = 64
    """Channels of the discriminator's first layer."""
    lecam_weight: Amount = 0.0
    """Weight of the LeCam regulariser of the discriminator; 0 leaves it out."""
    lecam_decay: Share = 0.999
    """Of the running means of the discriminator's answers that LeCam holds on to."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-4, betas=(0.5, 0.9)))
    """AdamW of the discriminator."""


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig(Config):
    """LPIPS on VGG16. Without paths the public weights are taken from the cache, and fetched into it once."""

    vgg: FilePath | None = None
    """VGG16 weights: the public .pth file, or a .safetensors conversion of it."""
    linear: FilePath | None = None
    """Linear layers of LPIPS v0.1, likewise."""
    weight: Amount = 1.0
    """Weight of the distance beside L1."""


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Config):
    """L1 between the bands of Laplacian pyramids: edges and texture, without a network's weights."""

    weight: Amount = 1.0
    """Weight of the distance beside L1."""
    levels: Annotated[int, Range(1, 12)] = 3
    """Bands, each of half the resolution of the one before; images have sides of at least 2^levels px."""


@dataclass(frozen=True, kw_only=True)
class SpectrumConfig(Config):
    """L1 between Fourier transforms, the worst frequencies first, without a network's weights."""

    weight: Amount = 1.0
    """Weight of the distance beside L1."""
    focus: Amount = 1.0
    """A frequency counts by its error to this power, the largest by 1 (focal frequency loss); 0: all alike."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(LoopConfig):
    """What every autoencoder training has."""

    crop_from: Side | None = None
    """Side that images are brought to before a random window of the training size is cut out; null: whole images."""
    flip: bool = True
    """Mirror half of the images."""
    l1_weight: Amount = 1.0
    """Weight of the mean absolute error of pixels in [-1, 1]."""
    pyramid: PyramidConfig | None = None
    """Sharpness by a Laplacian pyramid as a part of the reconstruction; null leaves it out, {} takes it as it is."""
    spectrum: SpectrumConfig | None = None
    """Sharpness by the Fourier transform, likewise."""
    reconstruction_reduction: Literal["mean", "sum"] = "mean"
    """Of all distances of the reconstruction together: the mean over all elements, or the sum over an image
    (VA-VAE)."""
    kl_weight: Amount = 1e-6
    """Weight of the KL divergence of the trained latent from a standard normal."""
    kl_reduction: Literal["mean", "sum"] = "mean"
    """The mean over all elements without the 1/2 (ImageNet branch), or the sum over a sample with it (VA-VAE)."""
    perceptual: PerceptualConfig | None = None
    """LPIPS on VGG16 as a part of the reconstruction; null leaves it out, {} takes it as it is."""
    adversarial: AdversarialConfig | None = None
    """A PatchGAN that judges reconstructions; null leaves it out."""
    adaptive_every: Count = 1
    """Steps between two measurements of adaptive weights, which cost partial backward passes; the last measured
    ratio serves in between. 1 is the reference."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class GenerativeAlignConfig(Config):
    """Alignment of what the pretrained transformer sees in the noised base and in the noised means of the detail."""

    weight: Positive = 0.1
    """Weight of the term; with `adaptive` a share of the reconstruction's gradient norm. Leave the section out to
    train without."""
    adaptive: bool = True
    """Weigh by |grad of reconstruction| / |grad of the term| at the layer that makes the detail latent."""
    block: Count = 4
    """Of the transformer, counted from 1: the tokens behind it are compared, later blocks are not computed."""
    time_mean: Number = 0.0
    """Mean of the normal that times are the sigmoid of (native time, 1 = data)."""
    time_std: Amount = 1.0
    """Its standard deviation."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(ReconstructionConfig):
    """Training of an `AutoencoderDA`."""

    scale: Literal[2, 4] = 2
    """s: how many times larger the image of the same token grid becomes, a side."""
    detail_channels: Count | None = None
    """D; null takes the base's number of channels."""
    clamp_base_image: bool = False
    """Clamp the downsampled image to [-1, 1] (the text-to-image branch does)."""
    base_units: Literal["raw", "scaled"] = "raw"
    """Units of the base latent in the decoder and as the alignment's target (the text-to-image branch scales it)."""
    warm_start: bool = False
    """Start the two new blocks from the base's own head and stem instead of from random weights; ours."""
    freeze_encoder_trunk: bool = False
    """Train the down block and the decoder alone, as the authors' text-to-image script does."""
    align_weight: Amount = 0.5
    """Weight of the detail alignment; with `align_adaptive` a share of the reconstruction's gradient norm."""
    align_adaptive: bool = True
    """Weigh by |grad of reconstruction| / |grad of alignment| at the layer that makes the detail latent."""
    generative_alignment: GenerativeAlignConfig | None = None
    """Alignment of detail and base in the features of the pair's transformer (LightningDiT or DiT), beside that of
    the latents; null leaves it out, {} takes it as it is."""
    detail_dropout: Share = 0.1
    """Share of samples whose detail the decoder does not see."""
    dropout_rescale: bool = False
    """Divide kept details by 1 - detail_dropout, as the reference does although its evaluation never does."""
    calibration_images: Count = 2048
    """Images over which the statistics of the detail channels are measured after training."""


@dataclass(frozen=True, kw_only=True)
class VisionWeighting(Config):
    """Weight and margins of the VF loss from a step on."""

    from_step: Whole = 0
    """Step from which this holds, until the next one begins."""
    weight: Positive = 0.1
    """Weight of the term; with `adaptive` a share of the reconstruction's gradient norm. Leave the section out to
    train without."""
    cosine_margin: Amount = 0.5
    """Positions are left alone once their cosine is above 1 - margin."""
    distance_margin: Amount = 0.25
    """Pairs of positions are left alone once their cosines differ by less."""


@dataclass(frozen=True, kw_only=True)
class VisionAlignConfig(Config):
    """Alignment of the latent to a vision foundation model; the defaults are VA-VAE's plain configuration."""

    model: PathOrName
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
        super().__post_init__()
        starts = [weighting.from_step for weighting in self.phases]
        if not starts or starts[0] != 0 or any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"phases must start at step 0 and then at later and later steps; got {starts}")

    def weighting(self, step: int) -> VisionWeighting:
        """Weight and margins at a step: the last that began."""
        return next(weighting for weighting in reversed(self.phases) if weighting.from_step <= step)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ReconstructionConfig):
    """Training of a plain autoencoder from scratch."""

    latent_noise: Amount = 0.0
    """Standard deviation of fixed latent noise, for autoencoders without a posterior (AutoencoderDC)."""
    vision: VisionAlignConfig | None = None
    """Alignment of the latent to a vision foundation model (VA-VAE)."""
