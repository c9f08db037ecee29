"""Settings of what is trained of a transformer."""

from dataclasses import dataclass
from typing import Literal

from davae.core.config import Config, Count, Positive


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Config):
    """LoRA (peft) on the family's targets; patch embedder and output head are trained in full beside it."""

    rank: Count = 256
    """Of the added low-rank weights."""
    alpha: Positive | None = None
    """Scale of what LoRA adds, as alpha / rank; null takes the rank."""
    targets: tuple[str, ...] | None = None
    """Ends of module paths, for example to_q; null takes the family's own."""
    frozen_precision: Literal["fp32", "bf16"] = "fp32"
    """What is not trained is held in this precision; trained weights are always fp32. bf16 halves the memory of the
    frozen layers and needs training under bf16 autocast."""
