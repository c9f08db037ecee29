"""Settings of a transformer's training objective: flow matching with the detail fading in (method, Eq. 10-12)."""

from dataclasses import dataclass
from typing import Literal

from davae.backbones.settings import LoraSettings
from davae.core.config import Amount, Number, Positive, Share, Whole
from davae.core.names import Init
from davae.train.settings import LoopConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(LoopConfig):
    """Training of a diffusion transformer on a latent cache."""

    detail_warmup_steps: Whole = 10_000
    """Steps over which the weight of the detail loss rises along a cosine from 0 to 1 (Eq. 12)."""
    time_mean: Number = 0.0
    """Mean of the normal that training times are the sigmoid of (native time, 1 = data)."""
    time_std: Amount = 1.0
    """Its standard deviation."""
    sigma_shift: Positive = 1.0
    """Shift of the training noise levels, as diffusers' schedulers count it: more than 1 means more noise."""
    objective: Literal["velocity", "data"] = "velocity"
    """Whether the squared error is taken of the velocity or of the data that it points to (SD3.5 in the authors'
    code)."""
    min_snr_gamma: Positive | None = None
    """Weigh the error of a sample by min((1 - sigma) / sigma, gamma); for the data objective."""
    cosine_weight: Amount = 1.0
    """Weight of the velocity direction loss; 0 leaves it out."""
    cosine_masked: bool = True
    """Whether the direction loss respects the detail weight. false is the authors' form, which lets the detail
    channels in from the first step."""
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
        if self.min_snr_gamma is not None and self.objective != "data":
            raise ValueError(
                f"min_snr_gamma weighs the error of the data; got {self.min_snr_gamma} with the objective "
                f"{self.objective}. Leave it out, or set objective: data"
            )
        if self.lora is not None and self.lora.frozen_precision == "bf16" and self.precision != "bf16":
            raise ValueError(
                "lora.frozen_precision bf16 needs precision bf16: fp32 activations do not meet bf16 weights"
            )
