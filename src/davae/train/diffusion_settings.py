"""Settings of a transformer's training objective: flow matching with the detail fading in (method, Eq. 10-12)."""

from dataclasses import dataclass

from davae.backbones.settings import LoraSettings
from davae.core.config import Amount, Fraction, Number, Positive, Share, Whole
from davae.core.names import Init, Objective
from davae.train.settings import LoopConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(LoopConfig):
    """Training of a diffusion transformer on a latent cache."""

    detail_warmup_steps: Whole = 10_000
    """Steps over which the weight of the detail loss rises along a cosine from 0 to `detail_weight` (Eq. 12)."""
    detail_weight: Positive = 1.0
    """What a detail channel counts in the end, where a base channel counts 1. The weights of all channels are scaled
    to mean 1: for a base of weight 2, set 0.5."""
    time_mean: Number = 0.0
    """Mean of the normal that training times are the sigmoid of (native time, 1 = data)."""
    time_std: Amount = 1.0
    """Its standard deviation."""
    sigma_shift: Positive = 1.0
    """Shift of the training noise levels, as diffusers' schedulers count it: more than 1 means more noise."""
    objective: Objective = "velocity"
    """Whether the squared error is taken of the velocity or of the data that it points to (SD3.5 in the authors'
    code)."""
    min_snr_gamma: Positive | None = None
    """Weigh the data error of a sample by min((1 - sigma) / sigma, gamma). Of the velocity objective it weighs the
    same error, which is sigma^2 times the velocity's: both objectives are then one loss."""
    cosine_weight: Amount = 1.0
    """Weight of the velocity direction loss; 0 leaves it out."""
    cosine_masked: bool = True
    """Whether the direction loss respects the detail weight. false is the authors' form, which lets the detail
    channels in from the first step."""
    detail_lag: Fraction = 0.0
    """How far the detail lags behind the base in time, in training and in drawing: the base is the first to become
    clear, and guides the detail. 0 is the paper's form, 1 draws all of the base before any detail."""
    condition_dropout: Share = 0.1
    """Share of samples trained without their label or caption, for classifier-free guidance."""
    init: Init = "zero"
    """How the new channels of the transformer start."""
    lora: LoraSettings | None = None
    """null trains every weight."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    flips: bool = True
    """Use mirrored latents for half of the samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora is not None and self.lora.frozen_precision == "bf16" and self.precision != "bf16":
            raise ValueError(
                "lora.frozen_precision bf16 needs precision bf16: fp32 activations do not meet bf16 weights"
            )
