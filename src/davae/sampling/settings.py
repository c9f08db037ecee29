"""How images are drawn, whatever they are of: the settings that samplers take."""

from dataclasses import dataclass

from davae.core.config import Config, require_positive
from davae.core.precision import Precision


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(Config):
    """What an image depends on beside its condition and the pipeline."""

    steps: int = 50
    """Euler steps; a grid of 250 points has 249."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Native times (0 = noise, 1 = data) between which guidance is on."""
    guidance_channels: int | None = None
    """Guide the first channels only, as upstream LightningDiT does with 3; null guides all of them."""
    seed: int = 0
    """Image i is drawn from seed + i."""
    precision: Precision = "fp32"
    """Of the transformer. bf16 is autocast; the state between steps and the decoder stay fp32."""

    def __post_init__(self) -> None:
        require_positive(self, "steps")
        if self.guidance_channels is not None:
            require_positive(self, "guidance_channels")
        start, end = self.guidance_interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"guidance_interval must be two times in order, in [0, 1]; got [{start}, {end}]")
