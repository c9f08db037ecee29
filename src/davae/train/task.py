"""What the loop trains. A new objective is a new class that fits `Task`; nothing else changes."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from davae.train.batch import Batch
from davae.train.ema import ExponentialAverage
from davae.train.settings import OptimConfig


@dataclass
class Learner:
    """A network and how it is moved.

    Args:
        network: its parameters that require a gradient are trained; at least one must.
        optim: AdamW and the course of its learning rate.
        ema_decay: of the average of the trained weights; None keeps none.
        ema_ramp: see `ExponentialAverage`.
    """

    network: nn.Module
    optim: OptimConfig
    ema_decay: float | None = None
    ema_ramp: bool = False
    average: ExponentialAverage | None = field(default=None, init=False)
    """Of the weights, once training has begun; for hooks."""


@dataclass(frozen=True)
class Loss:
    """What a task finds out about one learner on one micro-batch."""

    total: Tensor
    """The scalar to descend, the mean over the micro-batch, with its graph."""
    values: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the journal, the same names on every process and micro-batch of a step."""
    outputs: Batch = field(default_factory=dict)
    """Detached tensors that the learners after this one find in their micro-batch, beside what the feed put there."""


class Task(Protocol):
    """What is trained: the one place where the library is extended by a new objective.

    A task says which networks learn and what they descend. Everything else is the loop's: devices, several processes,
    accumulation, precision, clipping, the check for finite numbers, learning rates, averages, checkpoints, journal,
    signals. The smallest task:

        class Regression:
            def __init__(self, network: nn.Module, config: LoopConfig) -> None:
                self.learners = {"line": Learner(network, config.optim, config.ema_decay, config.ema_ramp)}
                self.state: dict[str, Tensor] = {}

            def is_active(self, learner: str, step: int) -> bool:
                return True

            def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
                error = (network(batch["x"]).float() - batch["y"]).square().mean()
                return Loss(error, {"mse": error.detach()})

    A resumed training equals an uninterrupted one, and several processes train what one does, because tasks keep to
    three rules. What is random is a function of `batch["position"]` (see `core.randomness`). What outlives a step is
    in `state`. What one learner needs of another goes through `Loss.outputs`, never through attributes.
    """

    learners: dict[str, Learner]
    """By name, in the order in which they are served: each micro-batch goes through all of them, loss and backward
    pass, and after the last micro-batch all of them step. A name is a group of the checkpoint and part of the
    journal's `loss_NAME` and `grad_norm_NAME`: to rename a learner is to give up its checkpoints. Not "task"."""
    state: dict[str, Tensor]
    """Tensors that outlive a step (running means, held weights), of any name; the checkpoint keeps them. On resuming
    it is filled, not replaced."""

    def is_active(self, learner: str, step: int) -> bool:
        """Whether a learner takes part in a step (from 0). One that does not stands still, average included."""

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Loss of one learner on a micro-batch, under autocast where the precision is bf16.

        Args:
            learner: its name.
            network: the learner's, wrapped for several processes; its forward must be the one called.
            batch: what the feed gives, on the device ("position" stays on the CPU), and the `Loss.outputs` of the
                active learners before this one.
            step: of the optimizer, from 0.
        """
