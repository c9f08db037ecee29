"""What the doctor counts is what the stages train: equal networks, settings and trained weights, for every recipe."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import davae
from davae.backbones.public import public_model
from davae.backbones.registry import backbone_of
from davae.data.solids import SolidsSource
from davae.evaluate.cost import perceptual_network
from davae.recipe import GIVEN_AUTOENCODER, Recipe, load_recipe
from davae.run import build, geometry, inputs
from davae.run.origins import EMBEDDED
from davae.run.rounds import rounds_of
from davae.run.run import Run
from davae.stages import base_autoencoder, base_transformer, finetune, judge, tokenizer
from davae.tools.doctor.trainings import Outline
from davae.train.task import Task

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "src/davae/recipes").glob("*.yaml"))


class Trained(Exception):
    """Takes a stage's task out of it, in place of the training."""

    def __init__(self, task: Task) -> None:
        self.task = task


def run_of(path: Path, folder: Path, *overrides: str) -> Run:
    """A recipe's run on solids: no data, and no run folder, is needed for what is compared."""
    settings = ["data.kind=solids", "data.count=8", *overrides]
    recipe = load_recipe(path, settings)
    if recipe.pair == "taef2":  # no published pair has it
        davae.AutoencoderTAEF2().save_pretrained(folder / "taef2")
        recipe = load_recipe(path, [*settings, f"pair={folder / 'taef2'}"])
    return Run(recipe, folder)


def stand_in(recipe: Recipe) -> str | None:
    """A published model for a pair that is not at hand."""
    if recipe.pretrain is not None:
        is_at_hand = GIVEN_AUTOENCODER not in recipe.reuse
    else:
        is_at_hand = recipe.pair == EMBEDDED or Path(recipe.pair).is_dir() or public_model(recipe.pair) is not None
    if is_at_hand:
        return None
    return "SD3.5-Medium" if recipe.has("prompts") else "LightningDiT-XL/1"


def description(task: Any) -> dict[str, Any]:
    """All that tells one training from another."""
    return {
        "settings": task.config,
        "layout": getattr(getattr(task, "reconstructor", task), "layout", None),
        "learners": {
            name: (network_description(learner.network), learner.optim, learner.ema_decay, learner.ema_ramp)
            for name, learner in task.learners.items()
        },
    }


def network_description(network: nn.Module) -> dict[str, Any]:
    config = {name: value for name, value in getattr(network, "config", {}).items() if not name.startswith("_")}
    return {
        "class": type(network),
        "config": config,
        "weights": [
            (name, tuple(weight.shape), weight.dtype, weight.requires_grad)
            for name, weight in network.named_parameters()
        ],
        "checkpointed": [
            name for name, part in network.named_modules() if getattr(part, "gradient_checkpointing", False)
        ],
    }


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run, str | None], dict[str, Task]]:
    """(run, stand-in) -> stage -> task that the stage makes. What is read from disk comes without weights."""

    def stop(run: Run, stage: str, task: Task, *_: Any) -> None:
        raise Trained(task)

    def task_of(module: ModuleType, run: Run, *name: Any) -> Task:
        monkeypatch.setattr(module, "fit", stop)
        with torch.device("meta"), pytest.raises(Trained) as caught:
            module.run(run, *name)
        return caught.value.task

    def tasks(run: Run, model: str | None) -> dict[str, Task]:
        disk, recipe = Outline(run, model), run.recipe
        classes = SimpleNamespace(class_names=SolidsSource(1).class_names)
        for place, name, value in (
            (build, "base_autoencoder", lambda run: disk.base_autoencoder),
            (build, "trained_base_autoencoder", lambda run: disk.base_autoencoder),
            (build, "trained_tokenizer", lambda run: SimpleNamespace(to=lambda device: None)),
            (build, "perceptual", lambda config, *_: None if config is None else perceptual_network()),
            (build, "vision_alignment", lambda run, autoencoder: None),
            (build, "image_set", lambda *_: None),
            (build, "judge_set", lambda *_: None),
            (build, "latent_set", lambda *_: None),
            (build, "base_latent_set", lambda *_: None),
            (build, "latent_cache", lambda *_: SimpleNamespace(manifest=classes)),
            (base_transformer, "LatentCache", lambda _: SimpleNamespace(manifest=classes, require=lambda **_: None)),
            (base_transformer, "weights_hash", lambda _: ""),
            (geometry, "base", lambda origins: disk.base),
            (inputs, "base_autoencoder", lambda run: {}),
            (tokenizer, "check_pair", lambda *_: None),
            (finetune, "check_pair", lambda *_: None),
            (finetune, "preview_hooks", lambda *_: ()),
            *((module, "depends_on", lambda *_: {}) for module in (tokenizer, finetune, base_transformer)),
        ):
            monkeypatch.setattr(place, name, value)
        if recipe.finetune is not None:
            if recipe.tokenizer is None:  # of another run, which is not there
                monkeypatch.setattr(geometry, "upgraded", lambda origins: disk.upgraded)
            family = backbone_of(disk.pretrained)
            run.__dict__["pair"] = SimpleNamespace(
                load_transformer=lambda: disk.pretrained,
                backbone=family,
                is_text=family.is_text,
                transformer_config=disk.pretrained.config,
            )
        found = {}
        if recipe.pretrain is not None and recipe.pretrain.autoencoder is not None:
            found["pretrain.autoencoder"] = task_of(base_autoencoder, run)
        if recipe.pretrain is not None and recipe.pretrain.transformer is not None:
            found["pretrain.transformer"] = task_of(base_transformer, run)
        if recipe.judge is not None:
            found["judge"] = task_of(judge, run)
        if recipe.tokenizer is not None:
            found["tokenizer"] = task_of(tokenizer, run)
        if recipe.finetune is not None:
            found |= {current.name: task_of(finetune, run, current.name) for current in rounds_of(run)}
        return found

    return tasks


def counted(run: Run, model: str | None) -> dict[str, Task]:
    """Stage -> task that the doctor counts."""
    outline, recipe = Outline(run, model), run.recipe
    found: dict[str, Task] = {}
    if recipe.pretrain is not None and recipe.pretrain.autoencoder is not None:
        found["pretrain.autoencoder"] = outline.base_autoencoder_task()
    if recipe.pretrain is not None and recipe.pretrain.transformer is not None:
        found["pretrain.transformer"] = outline.base_transformer_task()
    if recipe.judge is not None:
        found["judge"] = outline.judge_task()
    if recipe.tokenizer is not None:
        found["tokenizer"] = outline.tokenizer_task()
    if recipe.finetune is not None:
        found |= {current.name: outline.finetuning_task(current) for current in rounds_of(run)}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_doctor_counts_what_the_stages_train(
    path: Path, tmp_path: Path, trained: Callable[[Run, str | None], dict[str, Task]]
) -> None:
    run = run_of(path, tmp_path)
    model = stand_in(run.recipe)
    examined = {stage: description(task) for stage, task in counted(run_of(path, tmp_path), model).items()}
    made = {stage: description(task) for stage, task in trained(run, model).items()}
    assert examined.keys() == made.keys()
    for stage, task in made.items():
        assert examined[stage]["learners"].keys() == task["learners"].keys()
        assert examined[stage] == task, stage


@pytest.mark.parametrize(
    ("recipe", "stage", "setting"),
    [
        ("solids-pair", "pretrain.transformer", "pretrain.transformer.size=B"),
        ("demo", "tokenizer", "tokenizer.detail_channels=8"),
        ("demo", "tokenizer", "tokenizer.base_units=scaled"),
        ("demo", "finetune", "finetune.gradient_checkpointing=true"),
    ],
)
def test_a_setting_changes_what_is_compared(recipe: str, stage: str, setting: str, tmp_path: Path) -> None:
    (path,) = [path for path in RECIPES if path.stem == recipe]
    before, after = (counted(run_of(path, tmp_path, *settings), None)[stage] for settings in ((), (setting,)))
    assert description(before) != description(after)
