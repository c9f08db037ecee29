"""Settings of the two caches."""

from dataclasses import dataclass
from typing import Annotated

from davae.core.config import Config, Count, Range
from davae.core.names import DtypeName, Precision


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """How latents are stored."""

    flips: bool = True
    """Store every image mirrored too."""
    dtype: DtypeName = "float16"
    """Of the stored moments."""
    batch_size: Count = 32
    """Images encoded at once."""
    shard_size: Count = 4096
    """Images in a file, which is what an interruption can cost a process."""
    precision: Precision = "fp32"
    """Of the autoencoder."""
    max_aspect: Annotated[float, Range(1)] = 1.0
    """Longest side to shortest: 1 crops every image to a square; 2 keeps images between 1:2 and 2:1 in their shape,
    in buckets of sizes of about the same area."""


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(Config):
    """How captions become embeddings, once and for all."""

    max_length: Count = 256
    """Tokens of the long text encoder (T5); drawing takes the same number. CLIP has its own limit."""
    dtype: DtypeName = "bfloat16"
    """Of the text encoders and of what is stored."""
    batch_size: Count = 32
    """Prompts encoded at once."""
    shard_size: Count = 256
    """Prompts in a file, which is what an interruption can cost a process."""
