"""Stopped in the middle by a kill, a signal or a full disk, a run ends with the very bits of one that was not.

Every run here is the command line in a process of its own.
"""

import json
import os
import random
import resource
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_pair import build_tiny_pair, start_davae

STEPS = 30
LORA = {"rank": 2}
STAGES = {"tokenizer": "train-tokenizer", "finetune": "finetune"}


def recipe(folder: Path) -> dict[str, Any]:
    """A whole run in a second: 32 px images, one step a row. The judge joins at a third of the way."""
    common = {"steps": STEPS, "batch_size": 4, "log_every": 1, "precision": "fp32", "ema_decay": 0.9}
    optim = {"lr": 1e-3, "warmup_steps": 5, "final_lr_factor": 0.1, "max_grad_norm": 1.0}
    judge = {"start_step": 10, "width": 4}
    return {
        "name": "straight",
        "device": "cpu",
        "data": {"kind": "solids", "count": 24, "test_count": 4, "seed": 1, "workers": 0},
        "pair": str(build_tiny_pair(folder / "pair")),
        "image_size": 32,
        "tokenizer": common | {"optim": optim, "adversarial": judge, "calibration_images": 8},
        "cache": {"batch_size": 8},
        "finetune": common | {"optim": optim, "detail_warmup_steps": 10, "label_dropout": 0.3},
    }


class Workshop:
    """A folder with an uninterrupted run and the recipes of others."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, recipe(folder)
        self.write("straight", self.recipe)
        assert self.finish("straight", "run") == 0, self.log("straight")

    def write(self, name: str, values: dict[str, Any]) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values | {"name": name}))

    def start(self, name: str, verb: str) -> BaseProcess:
        arguments = [verb, self.folder / f"{name}.yaml", "--runs-dir", self.folder]
        return start_davae(arguments, self.folder / f"{name}.log")

    def finish(self, name: str, verb: str) -> int | None:
        process = self.start(name, verb)
        process.join(120)
        return process.exitcode

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()
