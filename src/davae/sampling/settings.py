"""How images are drawn, whatever they are of: the settings that samplers take."""

from dataclasses import dataclass
from typing import Literal

from davae.core.config import Amount, Config, Count, Fraction, Seed
from davae.core.names import Precision

Labels = Literal["balanced", "random"]
"""Class of image i: i modulo the number of classes, or drawn, as the reference of LightningDiT does."""
WHOLE = (0.0, 1.0)
"""The guidance interval that leaves no step out."""


def check_interval(interval: tuple[float, float]) -> None:
    """Refuse an interval of guidance that holds no time.

    Raises:
        ValueError: its end is not after its start.
    """
    start, end = interval
    if not start < end:
        raise ValueError(
            f"guidance_interval must be two times in order, start < end, in [0, 1]; got [{start}, {end}]. To draw "
            f"without guidance, set its scale to 1"
        )


def check_guided_channels(guided: int | None, channels: int) -> None:
    """Refuse guidance of more channels than a latent has.

    Raises:
        ValueError: there are more.
    """
    if guided is not None and guided > channels:
        raise ValueError(f"guidance_channels must be at most the latent's {channels} channels, or null; got {guided}")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings(Config):
    """What an image depends on beside its condition and the pipeline."""

    steps: Count = 50
    """Euler steps; a grid of 250 points has 249."""
    guidance_scale: Amount = 1.0
    """Classifier-free guidance; 1 is off."""
    guidance_interval: tuple[Fraction, Fraction] = WHOLE
    """Native times (0 = noise, 1 = data) between which guidance is on."""
    guidance_channels: Count | None = None
    """Guide the first channels only, as upstream LightningDiT does with 3; null guides all of them."""
    seed: Seed = 0
    """Image i is drawn from seed + i."""
    precision: Precision = "fp32"
    """Of the transformer. bf16 is autocast; the state between steps and the decoder stay fp32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.guidance_interval)
