"""What the library needs to know of a family of diffusion transformers. One file and one test a family."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Backbone:
    """One family, as data and a few functions.

    A widened transformer is the same class with another config and wider tensors: `inputs` names the weights
    whose dimension 1 is the latent channel, `outputs` the tensors whose rows are (group, channel) with the
    channel innermost.
    """

    class_name: str
    """Class of the transformer, as its config stores it."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_groups: Callable[[Any], int]
    """(config) -> how many groups of channels an output head's rows hold: p * p, times 2 with learned sigma."""
    widened_config: Callable[[Any, int], dict[str, Any]]
    """(config, channels) -> the config entries that change when the latent has `channels` channels."""
    num_tokens: Callable[[Any, int, int], int]
    """(config, latent height, latent width) -> tokens of an image."""
    fixed_grid: bool = False
    """Whether a model draws one size only, because its position tables are made for it."""
    lora_targets: tuple[str, ...] = ()
    """Module names that LoRA adapts by default (the paper's attention and feed-forward layers)."""
    heads: tuple[str, ...] = field(default=())
    """Exact paths of the patch embedder and output head, trained in full beside LoRA."""
    velocity: Callable[[Any, Tensor, Tensor, dict[str, Tensor]], Tensor] | None = None
    """(transformer, noisy latent [B, K, h, w], native time [B], conditioning) -> native velocity."""
