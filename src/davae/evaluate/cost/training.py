"""What a training costs: the task's own loss runs on tensors without values, learner by learner as in `train.loop`.

Nothing is estimated by a formula that could drift from the code: what the task computes, keeps and holds frozen is
what is counted.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor, nn

from davae.core.names import Precision
from davae.core.precision import autocast
from davae.evaluate.cost.cost import Cost
from davae.evaluate.cost.cuda_autocast import cast_as_cuda
from davae.evaluate.cost.flops import Flops, flop_counter
from davae.evaluate.cost.live_memory import LiveStorages
from davae.evaluate.cost.memory import Memory, bytes_by_dtype, count_parameters, size_of
from davae.evaluate.cost.stand_in import StandIn
from davae.train.batch import Batch
from davae.train.ema import trained_parameters
from davae.train.settings import LoopConfig
from davae.train.task import Task


def training_cost(stage: str, task: Task, config: LoopConfig, batch: Batch, period: int = 1) -> Cost:
    """Cost of a whole training, whose learners may begin at different steps.

    Args:
        stage: for people.
        task: in training mode, nothing trained yet; on any device, the meta device among them. It is left as it is.
            Everything that it holds is copied, so a `reduce` has to be a plain function, as the default is.
        config: its steps, batch and precision.
        batch: a micro-batch, what a process has on its device at once. Tensors of the meta device are shapes alone,
            see `image_batch` and `Workload.batch`; "position" holds numbers.
        period: steps after which the work repeats: gradient ratios are measured in one of `adaptive_every`.
    """
    rounds = _rounds(task, config.steps)
    flops = [_times(len(steps), training_flops(task, batch, _first_due(steps, period), period)) for steps in rounds]
    total = sum(flops, Flops(0))
    memories = [training_memory(task, batch, _first_due(steps, period), config.precision) for steps in rounds]
    return Cost(
        stage=stage,
        memory=max(memories, key=lambda memory: memory.total),
        at_once=len(batch["position"]),
        flops=Flops(total.forward // config.steps, total.backward // config.steps),
        images=config.steps * config.batch_size,
        precision=config.precision,
        parameters={name: count_parameters(learner.network) for name, learner in task.learners.items()},
    )


def training_memory(task: Task, batch: Batch, step: int, precision: Precision) -> Memory:
    """Memory of one step with AdamW, see `ASSUMPTIONS`.

    Args:
        task: see `training_cost`.
        batch: see `training_cost`.
        step: its number, which decides what learners take part.
        precision: as CUDA computes.
    """
    stand_in = StandIn(task, torch.device("cpu"))
    learners = [learner for name, learner in stand_in.copy.learners.items() if stand_in.copy.is_active(name, step)]
    trained = [[weight for _, weight in trained_parameters(learner.network)] for learner in learners]
    gradients = [_with_gradient(weight, stand_in) for weights in trained for weight in weights]
    if precision == "bf16":
        for learner in learners:
            cast_as_cuda(learner.network)
    with stand_in.mode, LiveStorages([*stand_in.tensors, *gradients]) as live:
        for _ in _moments(stand_in.copy, stand_in.inputs(batch), step, precision):
            pass
    sizes = [sum(map(size_of, weights)) for weights in trained]
    averaged = [size for size, learner in zip(sizes, learners, strict=True) if learner.ema_decay is not None]
    return Memory(
        weights=bytes_by_dtype(stand_in.tensors),
        gradients=sum(map(size_of, gradients)),
        optimizer=2 * sum(sizes),
        average=sum(averaged),
        activations=live.peak,
        update=max(sizes),  # the root of the second moments, of all parameters of a learner at once
    )


def training_flops(task: Task, batch: Batch, step: int, period: int = 1) -> Flops:
    """FLOPs of one image in training, all learners together; forward is what the losses take.

    Args:
        task: see `training_cost`.
        batch: see `training_cost`; its first image is taken.
        step: see `training_memory`.
        period: steps whose mean is taken, from `step` on: the first one as it is, all others as the second.
    """
    stand_in = StandIn(task, torch.device("meta"))
    first = stand_in.inputs({name: tensor[:1] for name, tensor in batch.items()})
    once = _flops(stand_in.copy, first, step)
    if period == 1:
        return once
    total = once + _times(period - 1, _flops(stand_in.copy, first, step + 1))
    return Flops(total.forward // period, total.backward // period)


def _flops(task: Task, batch: Batch, step: int) -> Flops:
    counts = [0]
    with flop_counter() as counter:
        for _ in _moments(task, batch, step, "fp32"):
            counts.append(counter.get_total_flops())
    spent = [after - before for before, after in zip(counts, counts[1:], strict=False)]
    return Flops(sum(spent[::2]), sum(spent[1::2]))


def _moments(task: Task, batch: Batch, step: int, precision: Precision) -> Iterator[None]:
    """One micro-batch of a step as `train.loop` does it; stops after every loss and after every backward pass."""
    given = dict(batch)
    for name, learner in task.learners.items():
        if not task.is_active(name, step):
            continue
        with autocast(torch.device("cpu"), precision):
            loss = task.loss(name, learner.network, given, step)
        given |= loss.outputs
        yield
        loss.total.backward()
        del loss
        yield


def _with_gradient(weight: nn.Parameter, stand_in: StandIn[Task]) -> Tensor:
    """Accumulation adds to gradients that are there."""
    weight.grad = stand_in.like(weight)
    return weight.grad


def _rounds(task: Task, steps: int) -> list[range]:
    """Steps 0 .. steps - 1 by the learners that take part."""

    def active(step: int) -> tuple[str, ...]:
        return tuple(name for name in task.learners if task.is_active(name, step))

    groups = (list(group) for _, group in groupby(range(steps), active))
    return [range(group[0], group[-1] + 1) for group in groups]


def _first_due(steps: range, period: int) -> int:
    """The last step that `period` divides, or the last one of few."""
    due = steps[-1] - steps[-1] % period
    return due if due in steps else steps[-1]


def _times(count: int, flops: Flops) -> Flops:
    return Flops(count * flops.forward, count * flops.backward)
