"""The extension point: the task that its documentation shows is one that trains."""

from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from davae.train.batch import Batch
from davae.train.loop import train
from davae.train.settings import LoopConfig, OptimConfig
from davae.train.task import Learner, Loss, Task


def test_the_documented_task_trains() -> None:
    example = Task.__doc__.split("The smallest task:\n")[1].split("    A resumed training")[0]
    names: dict[str, Any] = dict(globals())
    exec(dedent(example), names)
    network = nn.Linear(3, 1)
    config = LoopConfig(steps=200, batch_size=8, precision="fp32", optim=OptimConfig(lr=0.05), ema_decay=0.9)
    slope = torch.tensor([[1.0], [-2.0], [0.5]])

    def batches(step: int) -> Iterator[list[Batch]]:
        while True:
            x: Tensor = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            yield [{"x": x, "y": x @ slope}]
            step += 1

    task = names["Regression"](network, config)
    average = train(task, batches, config, Accelerator(cpu=True))["line"]
    torch.testing.assert_close(network.weight.detach().T, slope, atol=0.02, rtol=0)
    assert average is task.learners["line"].average
    assert (task.loss("line", network, next(batches(0))[0], 0)).values.keys() == {"mse"}


def test_a_loss_has_no_values_and_hands_nothing_on_by_default() -> None:
    first, second = Loss(torch.ones(())), Loss(torch.ones(()))
    assert first.values == first.outputs == {}
    assert first.values is not second.values
    assert Learner(nn.Linear(1, 1), OptimConfig()).average is None
