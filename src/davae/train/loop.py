"""The one training loop: accumulate, guard, step, average, log, save. It serves any `Task`."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from davae.core.config import Config
from davae.core.schedules import learning_rate_factor
from davae.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from davae.train.ema import ExponentialAverage, trained_parameters
from davae.train.feed import Batch
from davae.train.interrupt import Interrupt, Interrupted
from davae.train.journal import Journal, Observer, Silent


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW and its learning rate over steps."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    final_lr_factor: float = 1.0
    """The learning rate falls along a cosine to this fraction after the last step; 1.0 keeps it constant."""
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ValueError(f"lr must not be negative; got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """What every training has."""

    steps: int
    batch_size: int
    """Images a step, over all processes and accumulation steps."""
    accumulation: int = 1
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float | None = None
    """None trains without an average; then the last weights are the result."""
    ema_ramp: bool = False
    """Lower the decay in the first steps, for short runs."""
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 is autocast: weights, optimizer and losses stay fp32."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("log_every", "checkpoint_every", "keep_checkpoints")
    """Settings that change no weight: a run goes on with others."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be a multiple of accumulation {self.accumulation}; got {self.batch_size}"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1); got {self.ema_decay}")


@dataclass
class Learner:
    """A network and how it is moved."""

    network: nn.Module
    optim: OptimConfig
    ema_decay: float | None = None
    ema_ramp: bool = False
    average: ExponentialAverage | None = field(default=None, init=False)
    """Of the weights, once training has begun; for hooks."""


_TASK = "task"
"""Group of a checkpoint that holds the task's own state."""

Loss = tuple[Tensor, dict[str, Tensor]]
"""The scalar to descend, and detached scalars for the journal."""


class Task(Protocol):
    """What is trained. Learners are served in their order, on the same micro-batch, before any of them steps."""

    learners: dict[str, Learner]
    state: dict[str, Tensor]
    """Tensors that outlive a step (running means, held weights); the checkpoint keeps them."""

    def is_active(self, learner: str, step: int) -> bool:
        """Whether a learner takes part in a step."""

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Loss of one learner on a micro-batch; `network` is the learner's, wrapped for several processes."""


@dataclass
class _Moving:
    """A learner at work."""

    learner: Learner
    wrapped: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def average(self) -> ExponentialAverage | None:
        return self.learner.average


def train(
    task: Task,
    batches: Callable[[int], Iterator[list[Batch]]],
    config: LoopConfig,
    accelerator: Accelerator,
    *,
    store: CheckpointStore | None = None,
    journal: Journal | None = None,
    observer: Observer | None = None,
    hooks: Sequence[tuple[int, Callable[[int], None]]] = (),
) -> dict[str, ExponentialAverage | None]:
    """Train until `config.steps`, resuming from the newest complete checkpoint of `store`.

    Args:
        task: losses and networks.
        batches: first step -> micro-batches of every step from there on.
        config: see `LoopConfig`.
        accelerator: places, wraps and casts.
        store: where checkpoints live; None keeps none.
        journal: where rows go.
        observer: who watches.
        hooks: (every, function of the step) pairs, called after a step whose number they divide, and after its
            checkpoint is saved. A signal that comes in a hook is heeded after the next step.

    Returns:
        The weight average of each learner (None where it has none).

    Raises:
        FloatingPointError: a loss or gradient is not finite; raised before the optimizer moves.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
    """
    journal, observer = journal or Journal(None, ""), observer or Silent()
    moving = {name: _prepare(learner, accelerator) for name, learner in task.learners.items()}
    start = _resume(task, moving, store, accelerator.device)
    if accelerator.is_main_process:
        journal.rewind(start)
    observer.begin(journal.stage, config.steps, start)
    window, clock = _Window(), time.monotonic()
    with Interrupt() as interrupt:
        for step, micros in zip(range(start, config.steps), batches(start), strict=False):
            values = _step(task, moving, micros, step, config, accelerator)
            window.add(values)
            done = step + 1
            if done % config.log_every == 0 or done == config.steps:
                rate = window.count * config.batch_size / max(time.monotonic() - clock, 1e-9)
                row = window.close(accelerator) | {"images_per_second": rate}
                clock = time.monotonic()
                if accelerator.is_main_process:
                    journal.log(done, row)
                observer.advance(done, row)
            else:
                observer.advance(done)
            stop = interrupt.requested_anywhere(accelerator)
            if store is not None and (done % config.checkpoint_every == 0 or done == config.steps or stop):
                _save(store, done, task, moving, accelerator)
            for every, hook in hooks:  # a hook that fails takes no saved step with it
                if done % every == 0:
                    hook(done)
            if stop or (done == config.steps and interrupt.requested_anywhere(accelerator)):
                observer.end()
                raise Interrupted(interrupt.signal_number, done)
    observer.end()
    return {name: one.average for name, one in moving.items()}


def _prepare(learner: Learner, accelerator: Accelerator) -> _Moving:
    parameters = [weight for _, weight in trained_parameters(learner.network)]
    if not parameters:
        raise ValueError("There is nothing to train: no parameter of the network requires a gradient.")
    learner.network.to(accelerator.device)
    optim = learner.optim
    optimizer = torch.optim.AdamW(parameters, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    if learner.ema_decay is not None:
        learner.average = ExponentialAverage(learner.network, learner.ema_decay, learner.ema_ramp)
    return _Moving(learner, accelerator.prepare_model(learner.network), parameters, optimizer)


def _step(
    task: Task,
    moving: dict[str, _Moving],
    micros: list[Batch],
    step: int,
    config: LoopConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One optimizer step of every active learner; returns detached values for the journal."""
    active = {name: one for name, one in moving.items() if task.is_active(name, step)}
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    for number, micro in enumerate(micros):
        batch = {
            key: tensor if key == "position" else tensor.to(accelerator.device, non_blocking=True)
            for key, tensor in micro.items()
        }  # positions are read as numbers: on the device that would be a synchronisation
        for name, one in active.items():
            one.wrapped.require_backward_grad_sync = number == len(micros) - 1  # read by DDP, harmless elsewhere
            with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss, extras = task.loss(name, one.wrapped, batch, step)
            for key, value in {f"loss_{name}": loss.detach(), **extras}.items():
                values[key] = values[key] + value / len(micros)
            accelerator.backward(loss / len(micros))
    norms = {name: _clip(one, config) for name, one in active.items()}
    _guard(values, norms, step, accelerator)
    for one in active.values():
        optim = one.learner.optim
        factor = learning_rate_factor(step, optim.warmup_steps, config.steps, optim.final_lr_factor)
        one.optimizer.param_groups[0]["lr"] = optim.lr * factor
        one.optimizer.step()
        one.optimizer.zero_grad(set_to_none=True)
        if one.average is not None:
            one.average.update(step)
    return {**values, **{f"grad_norm_{name}": norm for name, norm in norms.items()}}


def _clip(one: _Moving, config: LoopConfig) -> Tensor:
    limit = one.learner.optim.max_grad_norm
    return torch.nn.utils.clip_grad_norm_(one.parameters, float("inf") if limit is None else limit).detach()


def _guard(values: dict[str, Tensor], norms: dict[str, Tensor], step: int, accelerator: Accelerator) -> None:
    """Stop before the optimizer step where anything is not finite: one device sync."""
    names = [*values, *(f"grad_norm_{name}" for name in norms)]
    numbers = torch.stack([value.float() for value in (*values.values(), *norms.values())])
    finite = torch.isfinite(accelerator.reduce(numbers, "sum")).cpu()
    if not finite.all():
        bad = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
        raise FloatingPointError(
            f"Training stopped before the optimizer step {step}: {', '.join(bad)} not finite. The last checkpoint is "
            f"intact. Lower the learning rate, set optim.max_grad_norm, or use precision fp32, then run again."
        )


class _Window:
    """Means of the journal's values since the last row, kept on the device until asked for."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, values: dict[str, Tensor]) -> None:
        self.count += 1
        for key, value in values.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()
            self._counts[key] += 1

    def close(self, accelerator: Accelerator) -> dict[str, float]:
        means = {key: total.float() / self._counts[key] for key, total in self._sums.items()}
        if means:
            reduced = accelerator.reduce(torch.stack(list(means.values())), "mean").tolist()
            row = dict(zip(means, reduced, strict=True))
        else:
            row = {}
        self.__init__()  # type: ignore[misc]
        return row


def _state(task: Task, moving: dict[str, _Moving]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {_TASK: task.state} if task.state else {}
    for name, one in moving.items():
        groups[name] = _network_state(one.learner.network)
        if one.average is not None:
            groups[f"{name}.ema"] = one.average.shadow
        groups[f"{name}.optimizer"] = {
            f"{index}.{key}": value
            for index, state in one.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
    return groups


def _network_state(network: nn.Module) -> dict[str, Tensor]:
    """What training changes: trained parameters and running statistics. Other buffers are tables, and large ones."""
    saved = network.state_dict()
    changing = {name for name, _ in trained_parameters(network)}
    for path, module in network.named_modules():
        if isinstance(module, _NormBase):
            changing |= {f"{path}.{name}".lstrip(".") for name, _ in module.named_buffers()}
    return {name: tensor for name, tensor in saved.items() if name in changing}


def _save(
    store: CheckpointStore, step: int, task: Task, moving: dict[str, _Moving], accelerator: Accelerator
) -> None:
    if accelerator.is_main_process:
        store.save(step, _state(task, moving))
    accelerator.wait_for_everyone()


def _resume(task: Task, moving: dict[str, _Moving], store: CheckpointStore | None, device: torch.device) -> int:
    checkpoint = store.latest() if store is not None else None
    if checkpoint is None:
        return 0
    for name, one in moving.items():
        _load(one, name, checkpoint)
    task.state.update({key: value.to(device) for key, value in checkpoint.groups.get(_TASK, {}).items()})
    return checkpoint.step


def _load(one: _Moving, name: str, checkpoint: Checkpoint) -> None:
    network = one.learner.network
    own, everything = _network_state(network), checkpoint.groups[name]
    # Checkpoints of earlier versions have every buffer; tables are the network's own.
    tables = {key for key, _ in network.named_buffers()} - own.keys()
    stored = {key: tensor for key, tensor in everything.items() if key not in tables}
    if own.keys() != stored.keys():
        raise CheckpointError(
            f"{checkpoint.path} holds other weights for the {name}: {sorted(own.keys() ^ stored.keys())[:5]}. "
            f"Pass --overwrite to start this stage anew."
        )
    network.load_state_dict(stored, strict=False)
    if one.average is not None:
        one.average.load(checkpoint.groups[f"{name}.ema"])
    packed: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in checkpoint.groups[f"{name}.optimizer"].items():
        index, field_name = key.split(".", 1)
        packed[int(index)][field_name] = value
    groups = one.optimizer.state_dict()["param_groups"]
    one.optimizer.load_state_dict({"state": dict(packed), "param_groups": groups})
