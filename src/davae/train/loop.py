"""The one training loop: accumulate, guard, step, average, log, save. It serves any `Task`."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor

from davae.core.observer import Observer, Silent
from davae.core.precision import autocast
from davae.core.schedules import learning_rate_factor
from davae.train.batch import Batch
from davae.train.checkpoint import CheckpointStore
from davae.train.ema import ExponentialAverage, advice_on_average
from davae.train.interrupt import Interrupt, Interrupted
from davae.train.journal import Journal, Window
from davae.train.settings import LoopConfig
from davae.train.state import STEADIER, LearnerState, resume, save
from davae.train.task import Task

Hook = tuple[int, Callable[[int], None]]
"""(every, function of the step), called after a step whose number `every` divides, and after its checkpoint is saved.
A signal that comes in a hook is heeded after the next step."""


def train(
    task: Task,
    batches: Callable[[int], Iterator[list[Batch]]],
    config: LoopConfig,
    accelerator: Accelerator,
    *,
    store: CheckpointStore | None = None,
    journal: Journal | None = None,
    observer: Observer | None = None,
    hooks: Sequence[Hook] = (),
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
        hooks: see `Hook`.

    Returns:
        The weight average of each learner (None where it has none).

    Raises:
        CheckpointError: the newest checkpoint belongs to other settings or networks, or none could be written.
        FloatingPointError: a loss or gradient is not finite; raised before the optimizer moves.
        Interrupted: SIGINT or SIGTERM came; the state was saved.
        ValueError: a learner has nothing to train.
    """
    journal, observer = journal or Journal(None, ""), observer or Silent()
    states = {
        name: LearnerState.prepare(learner, accelerator, config.compile) for name, learner in task.learners.items()
    }
    start = resume(store, task, states, accelerator.device)
    if accelerator.is_main_process:
        journal.rewind(start)
        _advise(task, config.steps, observer)
    observer.begin(journal.stage, config.steps, start)
    window = Window(config.batch_size)
    with Interrupt() as interrupt:
        for step, micros in zip(range(start, config.steps), batches(start), strict=False):
            window.add(_step(task, states, micros, step, config, accelerator))
            done, is_last = step + 1, step + 1 == config.steps
            row = window.close(accelerator) if done % config.log_every == 0 or is_last else None
            if row is not None and accelerator.is_main_process:
                journal.log(done, row)
            observer.advance(done, row)
            stop = interrupt.requested_anywhere(accelerator)
            if store is not None and (done % config.checkpoint_every == 0 or is_last or stop):
                save(store, done, task, states, accelerator)
            for every, hook in hooks:  # a hook that fails takes no saved step with it
                if done % every == 0:
                    hook(done)
            if stop or (is_last and interrupt.requested_anywhere(accelerator)):
                observer.end()
                raise Interrupted(interrupt.signal_number, done)
    observer.end()
    return {name: learner.average for name, learner in task.learners.items()}


def _advise(task: Task, steps: int, observer: Observer) -> None:
    for name, learner in task.learners.items():
        if learner.ema_decay is not None:
            advice = advice_on_average(learner.ema_decay, steps, learner.ema_ramp)
            if advice is not None:
                observer.say(f"{name}: {advice}")


def _step(
    task: Task,
    states: Mapping[str, LearnerState],
    micros: Sequence[Batch],
    step: int,
    config: LoopConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """One optimizer step of every active learner; returns detached values for the journal."""
    active = {name: state for name, state in states.items() if task.is_active(name, step)}
    values = _accumulate(task, active, micros, step, config, accelerator)
    values |= {f"grad_norm_{name}": _clip(state) for name, state in active.items()}
    _require_finite(values, step, accelerator)
    for state in active.values():
        _move(state, step, config.steps)
    return values


def _accumulate(
    task: Task,
    active: Mapping[str, LearnerState],
    micros: Sequence[Batch],
    step: int,
    config: LoopConfig,
    accelerator: Accelerator,
) -> dict[str, Tensor]:
    """Gradients of every active learner, summed over micro-batches; returns the means of loss and values."""
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=accelerator.device))
    for number, micro in enumerate(micros):
        batch = _placed(micro, accelerator.device)
        for name, state in active.items():
            # Processes exchange gradients once, with the last micro-batch.
            is_last = number == len(micros) - 1
            with nullcontext() if is_last else accelerator.no_sync(state.wrapped):
                with autocast(accelerator.device, config.precision):
                    loss = task.loss(name, state.wrapped, batch, step)
                accelerator.backward(loss.total / len(micros))
            for key, value in {f"loss_{name}": loss.total.detach(), **loss.values}.items():
                values[key] = values[key] + value / len(micros)
            batch = batch | loss.outputs
    return values


def _placed(micro: Batch, device: torch.device) -> Batch:
    # Positions are read as numbers: on the device that would be a synchronisation.
    return {
        key: tensor if key == "position" else tensor.to(device, non_blocking=True) for key, tensor in micro.items()
    }


def _clip(state: LearnerState) -> Tensor:
    """Norm of a learner's gradients before it is limited."""
    limit = state.learner.optim.max_grad_norm
    return torch.nn.utils.clip_grad_norm_(state.parameters, float("inf") if limit is None else limit).detach()


def _require_finite(values: Mapping[str, Tensor], step: int, accelerator: Accelerator) -> None:
    """Stop before the optimizer step where anything is not finite, on any process: one device sync."""
    numbers = torch.stack([value.float() for value in values.values()])
    finite = torch.isfinite(accelerator.reduce(numbers, "sum")).cpu()
    if not finite.all():
        bad = [name for name, fine in zip(values, finite.tolist(), strict=True) if not fine]
        raise FloatingPointError(
            f"Training stopped before the optimizer step {step}: {', '.join(bad)} not finite. The last checkpoint is "
            f"intact. {STEADIER}"
        )


def _move(state: LearnerState, step: int, steps: int) -> None:
    """The optimizer's step at this step's learning rate, and the average after it."""
    optim, average = state.learner.optim, state.learner.average
    factor = learning_rate_factor(step, optim.warmup_steps, steps, optim.final_lr_factor)
    state.optimizer.param_groups[0]["lr"] = optim.lr * factor
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if average is not None:
        average.update(step)
