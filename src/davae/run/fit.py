"""What every training stage does around the loop: feed, store, journal, and the averaged weights at the end."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from davae.recipe import RealismConfig
from davae.run.run import Run
from davae.train.batch import TrainingSet
from davae.train.checkpoint import CheckpointStore
from davae.train.ema import ExponentialAverage
from davae.train.feed import Share, feed
from davae.train.journal import Journal
from davae.train.loop import Hook, train
from davae.train.settings import LoopConfig
from davae.train.task import Task


def fit(
    run: Run,
    stage: str,
    task: Task,
    training_set: TrainingSet,
    config: LoopConfig,
    identity: Mapping[str, Any],
    hooks: Sequence[Hook] = (),
) -> dict[str, ExponentialAverage | None]:
    """Train a task to its end, resuming where it was.

    Args:
        run: whose folder takes checkpoints and curves.
        stage: their name there.
        task: what is trained.
        training_set: on what.
        config: how long, and how.
        identity: all that the weights depend on; checkpoints of another identity are refused.
        hooks: see `train`.

    Returns:
        The weight average of each learner.
    """
    accelerator, data = run.accelerator, config.data if isinstance(config, RealismConfig) else run.recipe.data
    assert data is not None
    share = Share(config.batch_size, config.accumulation, accelerator.num_processes, accelerator.process_index)
    return train(
        task,
        lambda start: feed(training_set, share, start, config.steps, data.workers),
        config,
        accelerator,
        store=_store(run, stage, identity, config.keep_checkpoints),
        journal=Journal(run.folder.stats, stage),
        observer=run.observer,
        hooks=hooks,
    )


def applied(average: ExponentialAverage | None) -> AbstractContextManager[None]:
    """The network carries its averaged weights inside this block, where there is an average."""
    return nullcontext() if average is None else average.applied()


def _store(run: Run, stage: str, identity: Mapping[str, Any], keep: int) -> CheckpointStore:
    store = CheckpointStore(run.folder.checkpoints(stage), identity, keep)
    if run.overwrite and run.is_main and not store.belongs():
        store.clear()
    run.accelerator.wait_for_everyone()
    return store
