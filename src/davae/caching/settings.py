"""Settings of the two caches."""

from dataclasses import dataclass

from davae.core.config import Config, require_positive
from davae.core.precision import DtypeName, Precision


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """How latents are stored."""

    flips: bool = True
    """Store every image mirrored too."""
    dtype: DtypeName = "float16"
    """Of the stored moments."""
    batch_size: int = 32
    """Images encoded at once."""
    shard_size: int = 4096
    """Images in a file, which is what an interruption can cost a process."""
    precision: Precision = "fp32"
    """Of the autoencoder."""
    max_aspect: float = 1.0
    """Longest side to shortest: 1 crops every image to a square; 2 keeps images between 1:2 and 2:1 in their shape,
    in buckets of sizes of about the same area."""

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "shard_size")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1 (squares); got {self.max_aspect}")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(Config):
    """How captions become embeddings, once and for all."""

    max_length: int = 256
    """Tokens of the long text encoder (T5); drawing takes the same number. CLIP has its own limit."""
    dtype: DtypeName = "bfloat16"
    """Of the text encoders and of what is stored."""
    batch_size: int = 32
    """Prompts encoded at once."""
    shard_size: int = 256
    """Prompts in a file, which is what an interruption can cost a process."""

    def __post_init__(self) -> None:
        require_positive(self, "max_length", "batch_size", "shard_size")
