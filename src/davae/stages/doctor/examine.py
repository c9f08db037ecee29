"""`davae doctor`: proves a recipe before a GPU-hour is spent, and tells what the run will cost.

It writes nothing but the file that is asked for. A check that fails hides no other one; those that build on it are
left out.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from davae.backbones.public import known_model
from davae.evaluate.gpus import named_gpu
from davae.recipe import Recipe
from davae.stages.doctor.case import Case, Finding
from davae.stages.doctor.checks import (
    check_data,
    check_fit,
    check_keys,
    check_latent_cache,
    check_latents,
    check_pair,
    check_prompt_cache,
    check_step_zero,
    check_training_step,
)
from davae.stages.doctor.cost import assumptions, check_cost, check_memory, check_tokens
from davae.stages.run import Run

EXPECTED = (ValueError, OSError, FloatingPointError, SafetensorError, torch.OutOfMemoryError)
"""What a check that fails raises; anything else is a bug."""


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Args:
        name: of the check.
        look: (case) -> findings; raises what is in `EXPECTED`.
        applies: whether a recipe has what it looks at.
        needs: checks that it builds on.
    """

    name: str
    look: Callable[[Case], list[Finding]]
    applies: Callable[[Recipe], bool] = lambda recipe: True
    needs: tuple[str, ...] = ()


def _finetunes(recipe: Recipe) -> bool:
    return recipe.finetune is not None


def _upgrades(recipe: Recipe) -> bool:
    return recipe.has("tokenizer")


def _prompted(recipe: Recipe) -> bool:
    return recipe.has("prompts")


def _trains(recipe: Recipe) -> bool:
    return recipe.finetune is not None or (recipe.pretrain is not None and recipe.pretrain.transformer is not None)


CHECKS = (
    Check("pair", check_pair, _upgrades),
    Check("data", check_data),
    Check("fit", check_fit, _finetunes, ("pair", "data")),
    Check("keys", check_keys, _finetunes, ("pair",)),
    Check("step 0", check_step_zero, _finetunes, ("fit", "keys")),
    Check("latents", check_latents, _upgrades, ("pair", "data")),
    Check("latent cache", check_latent_cache, _upgrades, ("pair", "data")),
    Check("prompt cache", check_prompt_cache, _prompted, ("pair", "data")),
    Check(
        "training step", check_training_step, _finetunes, ("fit", "keys", "latents", "latent cache", "prompt cache")
    ),
    Check("tokens", check_tokens, _trains),
    Check("memory", check_memory, _trains, ("tokens",)),
    Check("cost", check_cost, _trains, ("tokens",)),
)


def examine(run: Run, gpu: str | None = None, model: str | None = None) -> Iterator[Finding]:
    """Look at a run check by check.

    Args:
        run: of the recipe.
        gpu: name of a device in `evaluate.gpus.GPUS` that the run is meant for; None takes the one at hand.
        model: name of a published model in `backbones.public.PUBLIC` that stands for the pair where cost is counted;
            None knows pairs on the hub by their names.
    """
    case, blocked = Case(run, gpu, model), set[str]()
    for check in CHECKS:
        if not check.applies(run.recipe):
            continue
        missing = [name for name in check.needs if name in blocked]
        if missing:
            blocked.add(check.name)
            yield Finding("left out", f"it builds on {' and '.join(missing)}.", check=check.name)
            continue
        try:
            findings = check.look(case)
        except EXPECTED as error:
            findings = [Finding("failed", str(error))]
        if any(finding.level in ("failed", "left out") for finding in findings):
            blocked.add(check.name)
        yield from (replace(finding, check=check.name) for finding in findings)


def work(
    recipe: Recipe,
    runs_dir: Path,
    say: Callable[[str], None],
    gpu: str | None = None,
    model: str | None = None,
    out: Path | None = None,
) -> bool:
    """Say what was found, a line a finding.

    Args:
        recipe: to examine.
        runs_dir: folder of all runs; what the run has already is examined too.
        say: takes a line.
        gpu: see `examine`.
        model: see `examine`.
        out: JSON file to write; None writes nothing.

    Returns:
        Whether nothing failed.

    Raises:
        ValueError: the GPU or the model is not known.
    """
    if gpu is not None:
        named_gpu(gpu)
    if model is not None:
        known_model(model)
    findings = []
    for finding in examine(Run(recipe, runs_dir), gpu, model):
        say(str(finding))
        findings.append(finding)
    if any(finding.check in ("memory", "cost") and finding.values for finding in findings):
        for line in assumptions():
            say(f"{'assumed':>8}  {line}")
    healthy = all(finding.level != "failed" for finding in findings)
    if out is not None:
        report = {
            "recipe": recipe.name,
            "healthy": healthy,
            "findings": [asdict(finding) for finding in findings],
            "assumptions": assumptions(),
        }
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return healthy
