"""Settings that every training has: the loop's, and AdamW's."""

from dataclasses import dataclass, field
from typing import ClassVar

from davae.core.config import Amount, Config, Count, Fraction, Positive, Share, Whole
from davae.core.names import Precision


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW and its learning rate over steps."""

    lr: Amount = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[Share, Share] = (0.9, 0.95)
    """Decay of the running mean of gradients, and of their squares."""
    weight_decay: Amount = 0.0
    """Of all trained weights, decoupled from the gradient."""
    warmup_steps: Whole = 0
    """Steps over which the learning rate rises linearly."""
    final_lr_factor: Fraction = 1.0
    """The learning rate falls along a cosine to this fraction after the last step; 1.0 keeps it constant."""
    max_grad_norm: Positive | None = None
    """Gradients are scaled down to this norm, all weights together; null leaves them as they are."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """What every training has. The settings of a task's own objective are a subclass."""

    steps: Count
    """Optimizer steps in all; a stopped training goes on up to here."""
    batch_size: Count
    """Images a step, over all processes and accumulation steps."""
    accumulation: Count = 1
    """Parts in which a process takes its share of a batch, one after the other: less memory, the same step."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """AdamW and its learning rate."""
    ema_decay: Share | None = None
    """Decay of the exponential moving average of the weights, which is then the result; null keeps no average, and
    the last weights are the result."""
    ema_ramp: bool = False
    """Lower the decay in the first steps, for short runs."""
    log_every: Count = 50
    """Steps between two rows of stats.jsonl."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints, which is what a kill can cost; an interrupt saves one itself."""
    keep_checkpoints: Count = 2
    """How many of the newest stay on disk."""
    precision: Precision = "bf16"
    """bf16 is autocast: weights, optimizer and losses stay fp32."""
    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, then faster steps. On CPU that needs a C++
    compiler; numbers are rounded a little differently."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("log_every", "checkpoint_every", "keep_checkpoints")
    """Settings that change no weight: a run goes on with others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation {self.accumulation}; got {self.batch_size}"
            )
