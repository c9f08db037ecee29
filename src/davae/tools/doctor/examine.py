"""`davae doctor`: proves a recipe before a GPU-hour is spent, and tells what the run will cost.

It writes nothing but the file that is asked for. A check that fails hides no other one; those that build on it are
left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from davae.backbones.public import known_model
from davae.core.state import write_json
from davae.evaluate.gpus import named_gpu
from davae.recipe import Recipe
from davae.run.run import Run
from davae.tools.doctor.checks import (
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
from davae.tools.doctor.cost import assumptions, check_cost, check_memory, check_tokens
from davae.tools.doctor.examination import Examination
from davae.tools.doctor.finding import Finding

EXPECTED = (ValueError, OSError, FloatingPointError, SafetensorError, torch.OutOfMemoryError)
"""What a check that fails raises; anything else is a bug."""


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Args:
        name: of the check.
        look: (examination) -> findings; raises what is in `EXPECTED`.
        applies: whether a recipe has what it looks at.
        needs: checks that it builds on.
    """

    name: str
    look: Callable[[Examination], list[Finding]]
    applies: Callable[[Recipe], bool] = lambda recipe: True
    needs: tuple[str, ...] = ()


def _finetunes(recipe: Recipe) -> bool:
    return recipe.finetune is not None


def _upgrades(recipe: Recipe) -> bool:
    return recipe.has("tokenizer")


def _prompted(recipe: Recipe) -> bool:
    return recipe.has("prompts")


def _has_data(recipe: Recipe) -> bool:
    return recipe.data is not None


def _has_transformer(recipe: Recipe) -> bool:
    trains = recipe.pretrain is not None and recipe.pretrain.transformer is not None
    return trains or recipe.has("finetune") or recipe.sample is not None


CHECKS = (
    Check("pair", check_pair, _upgrades),
    Check("data", check_data, _has_data),
    Check("fit", check_fit, _finetunes, ("pair", "data")),
    Check("keys", check_keys, _finetunes, ("pair",)),
    Check("step 0", check_step_zero, _finetunes, ("fit", "keys")),
    Check("latents", check_latents, _upgrades, ("pair", "data")),
    Check("latent cache", check_latent_cache, _upgrades, ("pair", "data")),
    Check("prompt cache", check_prompt_cache, _prompted, ("pair", "data")),
    Check(
        "training step", check_training_step, _finetunes, ("fit", "keys", "latents", "latent cache", "prompt cache")
    ),
    Check("tokens", check_tokens, _has_transformer),
    Check("memory", check_memory, needs=("tokens",)),
    Check("cost", check_cost, needs=("tokens",)),
)


_COUNTED = ("tokens", "memory", "cost")
_STAND_IN = "Or name a published model that stands for the pair, for example --model LightningDiT-XL/1."


def examine(run: Run, gpu: str | None = None, model: str | None = None, devices: int = 1) -> Iterator[Finding]:
    """Look at a run check by check.

    Args:
        run: of the recipe.
        gpu: name of a device in `evaluate.gpus.GPUS` that the run is meant for; None takes the one at hand.
        model: name of a published model in `backbones.public.PUBLIC` that stands for the pair where cost is counted;
            None knows pairs on the hub by their names.
        devices: that share the run where cost is counted.
    """
    examination, blocked = Examination(run, gpu, model, devices), set[str]()
    for check in CHECKS:
        if not check.applies(run.recipe):
            continue
        missing = [name for name in check.needs if name in blocked]
        if missing:
            blocked.add(check.name)
            yield Finding("left out", f"it builds on {' and '.join(missing)}.", check=check.name)
            continue
        try:
            findings = check.look(examination)
        except EXPECTED as error:
            counts_without_pair = check.name in _COUNTED and isinstance(error, FileNotFoundError) and model is None
            findings = [Finding("failed", str(error), _STAND_IN if counts_without_pair else "")]
        if any(finding.level in ("failed", "left out") for finding in findings):
            blocked.add(check.name)
        yield from (replace(finding, check=check.name) for finding in findings)


def report(
    recipe: Recipe,
    runs_dir: Path,
    say: Callable[[str], None],
    gpu: str | None = None,
    model: str | None = None,
    out: Path | None = None,
    devices: int = 1,
) -> bool:
    """Say what was found, a line a finding.

    Args:
        recipe: to examine.
        runs_dir: folder of all runs; what the run has already is examined too.
        say: takes a line.
        gpu: see `examine`.
        model: see `examine`.
        out: JSON file to write; None writes nothing.
        devices: see `examine`.

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
    for finding in examine(Run(recipe, runs_dir), gpu, model, devices):
        say(str(finding))
        findings.append(finding)
    if any(finding.check in ("memory", "cost") and finding.values for finding in findings):
        for line in assumptions():
            say(f"{'assumed':>8}  {line}")
    healthy = all(finding.level != "failed" for finding in findings)
    if out is not None:
        found = {
            "recipe": recipe.name,
            "healthy": healthy,
            "findings": [asdict(finding) for finding in findings],
            "assumptions": assumptions(),
        }
        write_json(out, found, indent=2)
    return healthy
