"""Settings of `davae generate`."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from davae.core.config import Amount, Config, Count, Fraction, Seed, Side
from davae.sampling.settings import WHOLE, SamplerSettings, check_interval


@dataclass(frozen=True, kw_only=True)
class Generation(Config):
    """What is drawn and how it is kept.

    Args:
        height: of the images, pixels; None takes that of its training, else the default.
        width: likewise.
        steps: of the pipeline's scheduler. 30 steps and guidance 2.5 are the paper's, for its SD3.5-Medium.
        guidance: 1 is off.
        guidance_interval: native times (0 = noise, 1 = data) between which guidance is on.
        negative: what guidance leads away from.
        max_length: tokens of the long text encoder; None takes that of its training, else the default.
        seed: of the first image; image i has seed + i.
        count: images a prompt, one after the other.
        batch: images drawn at once; changes nothing about an image but its rounding.
        preview: keep the base channels of the same latents beside every image.
        shards: write captioned tar shards rather than files.
        shard_size: images a shard, which is what an interruption can cost a process.
        form: of the images.
    """

    height: Side | None = None
    width: Side | None = None
    steps: Count = 30
    guidance: Amount = 2.5
    guidance_interval: tuple[Fraction, Fraction] = WHOLE
    negative: str = ""
    max_length: Count | None = None
    seed: Seed = 0
    count: Count = 1
    batch: Count = 4
    preview: bool = False
    shards: bool = False
    shard_size: Count = 256
    form: Literal["png", "jpg"] = "png"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_interval(self.guidance_interval)

    @property
    def sampler(self) -> SamplerSettings:
        """What the sampler takes; it computes in the weights' own precision."""
        return SamplerSettings(
            steps=self.steps,
            guidance_scale=self.guidance,
            guidance_interval=self.guidance_interval,
            seed=self.seed,
        )


def digest(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
