"""What every training stage does around the loop: feed, store, journal, and the averaged weights at the end."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from davae.models.perceptual import LPIPS
from davae.stages.run import Run
from davae.train.ema import ExponentialAverage
from davae.train.feed import Share, feed
from davae.train.loop import LoopConfig, Task, train
from davae.train.objective import PerceptualConfig


def fit(
    run: Run,
    stage: str,
    task: Task,
    training_set: Any,
    config: LoopConfig,
    identity: Mapping[str, Any],
    hooks: Sequence[tuple[int, Callable[[int], None]]] = (),
) -> dict[str, ExponentialAverage | None]:
    """Train a task to its end, resuming where it was; returns the weight averages."""
    accelerator, data = run.accelerator, run.recipe.data
    assert data is not None
    share = Share(config.batch_size, config.accumulation, accelerator.num_processes, accelerator.process_index)
    return train(
        task,
        lambda start: feed(training_set, share, start, config.steps, data.workers),
        config,
        accelerator,
        store=run.store(stage, identity, config.keep_checkpoints),
        journal=run.journal(stage),
        observer=run.observer,
        hooks=hooks,
    )


def applied(average: ExponentialAverage | None) -> AbstractContextManager[None]:
    """The network carries its averaged weights inside this block, where there is an average."""
    return nullcontext() if average is None else average.applied()


def load_perceptual(
    config: PerceptualConfig | None, device: torch.device, say: Callable[[str], None] | None = None
) -> LPIPS | None:
    """The distance network of a recipe, if it asks for one; public weights are fetched once, `say` hears of it."""
    if config is None:
        return None
    vgg = None if config.vgg is None else Path(config.vgg)
    linear = None if config.linear is None else Path(config.linear)
    return LPIPS.from_pretrained(vgg, linear, allow_download=True, say=say).to(device)
