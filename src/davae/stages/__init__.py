"""The stages of a run, a file a section. A new one is a file that declares its `STAGE`, and a line here."""

from collections.abc import Sequence
from pathlib import Path

from davae.core.observer import Observer
from davae.recipe import Recipe
from davae.run.execute import Stage, execute, planned
from davae.run.run import Run
from davae.stages import (
    base_autoencoder,
    base_latents,
    base_transformer,
    cache,
    evaluate,
    finetune,
    judge,
    prompts,
    report,
    sample,
    tokenizer,
)

STAGES: tuple[Stage, ...] = (
    judge.STAGE,
    base_autoencoder.STAGE,
    base_latents.STAGE,
    base_transformer.STAGE,
    tokenizer.STAGE,
    cache.STAGE,
    prompts.STAGE,
    finetune.STAGE,
    cache.REALISM,
    prompts.REALISM,
    finetune.REALISM,
    sample.STAGE,
    evaluate.STAGE,
    report.STAGE,
)
"""In the order in which they run."""


def run_recipe(
    recipe: Recipe,
    runs_dir: str | Path = "runs",
    *,
    verb: str | None = None,
    observer: Observer | None = None,
    overwrite: bool = False,
) -> Run:
    """Run every stage of a recipe, or those of one verb, passing over what is done; `davae run` in Python.

    Args:
        recipe: see `davae.load_recipe`.
        runs_dir: folder of all runs; this one lives in `runs_dir / recipe.name`.
        verb: "train-tokenizer", "finetune" and so on; None runs all.
        observer: hears of progress; None shows nothing.
        overwrite: whether finished trainings may be started anew where their settings changed.

    Returns:
        The run: its `folder` knows where everything lies.

    Raises:
        ValueError: the recipe lacks what the verb needs, does not fit its pair, or belongs to another run.
        Interrupted: SIGINT or SIGTERM came during a training; the state was saved, call again to go on.
    """
    run = Run(recipe, Path(runs_dir), observer, overwrite)
    stages: Sequence[Stage] = planned(STAGES, recipe, verb)
    execute(run, stages)
    return run
