"""Which stages a recipe has, which of them run and which are skipped."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from davae.data import prompts as prompt_cache
from davae.data.latents import is_complete
from davae.recipe import Recipe
from davae.stages import cache, evaluate, finetune, pretrain, prompts, report, sample, tokenizer
from davae.stages.run import Run
from davae.train.checkpoint import differences
from davae.train.interrupt import terminable
from davae.train.journal import Silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    verb: str
    """The command that runs it."""
    section: str
    """The recipe section it needs; a dot leads into a section."""
    inputs: Callable[[Run], Mapping[str, Any]]
    """What its result depends on, as JSON values; the stage is skipped while these stand."""
    work: Callable[[Run], None]
    output: Callable[[Run], Path]
    """What it leaves in the run's folder, the last of it to be written."""
    stands: Callable[[Path], bool] = Path.exists
    """Whether the output is there and whole."""
    trains: bool = False
    """Whether it makes weights, which are never thrown away without being asked."""


STAGES = (
    Stage(
        "pretrain-autoencoder",
        "pretrain",
        "pretrain.autoencoder",
        pretrain.autoencoder_inputs,
        pretrain.train_autoencoder,
        lambda run: run.folder / "pretrain" / "vae",
        trains=True,
    ),
    Stage(
        "pretrain-latents",
        "pretrain",
        "pretrain.transformer",
        pretrain.latents_inputs,
        pretrain.encode_latents,
        lambda run: run.folder / "pretrain" / "latents",
        stands=is_complete,
    ),
    Stage(
        "pretrain-transformer",
        "pretrain",
        "pretrain.transformer",
        pretrain.transformer_inputs,
        pretrain.train_transformer,
        lambda run: run.folder / "pretrain" / "pipeline",
        trains=True,
    ),
    Stage(
        "tokenizer",
        "train-tokenizer",
        "tokenizer",
        tokenizer.inputs,
        tokenizer.work,
        lambda run: run.folder / "tokenizer",
        trains=True,
    ),
    Stage(
        "cache", "cache", "cache", cache.inputs, cache.work, lambda run: run.folder / "latents", stands=is_complete
    ),
    Stage(
        "prompts",
        "prompts",
        "prompts",
        prompts.inputs,
        prompts.work,
        lambda run: run.folder / "prompts",
        stands=prompt_cache.is_complete,
    ),
    Stage(
        "finetune",
        "finetune",
        "finetune",
        finetune.inputs,
        finetune.work,
        lambda run: run.folder / run.upgraded_name,
        trains=True,
    ),
    Stage(
        "realism-cache",
        "cache",
        "realism",
        partial(cache.inputs, phase="realism"),
        partial(cache.work, phase="realism"),
        lambda run: run.folder / "realism" / "latents",
        stands=is_complete,
    ),
    Stage(
        "realism-prompts",
        "prompts",
        "realism",
        partial(prompts.inputs, phase="realism"),
        partial(prompts.work, phase="realism"),
        lambda run: run.folder / "realism" / "prompts",
        stands=prompt_cache.is_complete,
    ),
    Stage(
        "realism",
        "finetune",
        "realism",
        partial(finetune.inputs, phase="realism"),
        partial(finetune.work, phase="realism"),
        lambda run: run.folder / "realism" / run.upgraded_name,
        trains=True,
    ),
    Stage("sample", "sample", "sample", sample.inputs, sample.work, lambda run: run.folder / "samples" / "grid.png"),
    Stage(
        "evaluate", "evaluate", "evaluate", evaluate.inputs, evaluate.work, lambda run: run.folder / "results.json"
    ),
    Stage("report", "report", "evaluate", report.inputs, report.work, lambda run: run.folder / "report.html"),
)
VERBS = ("pretrain", "train-tokenizer", "cache", "prompts", "finetune", "sample", "evaluate", "report")


def planned(run: Run, verb: str | None = None) -> list[Stage]:
    """The stages of a recipe in order, or those of one verb.

    Raises:
        ValueError: the recipe lacks the section that the verb needs.
    """
    stages = [stage for stage in STAGES if _has(run.recipe, stage.section)]
    if verb is None:
        return stages
    chosen = [stage for stage in stages if stage.verb == verb]
    if not chosen:
        section = next(stage.section for stage in STAGES if stage.verb == verb)
        section = section.partition(".")[0]
        raise ValueError(f"'{verb}' needs the section {section}, which recipe {run.recipe.name} lacks.")
    return chosen


def _has(recipe: Recipe, section: str) -> bool:
    value: Any = recipe
    for part in section.split("."):
        value = None if value is None else getattr(value, part)
    return value is not None


def is_done(run: Run, stage: Stage) -> bool:
    """Whether the stage's output stands and its inputs did not change."""
    return stage.stands(stage.output(run)) and not _changes(run, stage)


def execute(run: Run, stages: Sequence[Stage]) -> None:
    """Run stages in order, passing over those that are done.

    Raises:
        ValueError: a finished training would be replaced because its settings changed, and `overwrite` is off.
    """
    if not run.accelerator.is_main_process:
        run.observer = Silent()  # one process talks
    run.check()
    for stage in stages:
        changes = _changes(run, stage)
        stands = stage.stands(stage.output(run))
        if stands and not changes:
            run.observer.say(f"{stage.name}: done before, skipped")
            continue
        if stands and stage.trains and run.record.stage(stage.name) is not None and not run.overwrite:
            raise ValueError(
                f"Run {run.recipe.name} has a finished {stage.name} with other settings: {'; '.join(changes[:5])}. "
                f"Use the old settings, give the run another name, or pass --overwrite."
            )
        if run.accelerator.is_main_process:
            run.write_recipe()  # not before: a refused recipe is not the run's
        run.accelerator.wait_for_everyone()
        started = time.monotonic()
        try:
            with terminable():
                stage.work(run)
        except BaseException:
            if run.accelerator.is_main_process:
                with suppress(OSError):  # on a full disk the first error is the one to report
                    run.record.pause(stage.name, time.monotonic() - started)
            raise
        run.accelerator.wait_for_everyone()
        if run.accelerator.is_main_process:
            if run.skipped is not None:
                run.record.note_skipped(run.skipped)
            run.record.finish(stage.name, _inputs(run, stage), time.monotonic() - started)
        run.accelerator.wait_for_everyone()


def _inputs(run: Run, stage: Stage) -> dict[str, Any]:
    return json.loads(json.dumps(stage.inputs(run)))


def _changes(run: Run, stage: Stage) -> list[str]:
    entry = run.record.stage(stage.name)
    return ["never finished"] if entry is None else differences(entry["inputs"], _inputs(run, stage))
