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

STEPS = 36
STAGES = {"tokenizer": "train-tokenizer", "finetune": "finetune"}
RESULTS = {"tokenizer": "tokenizer", "finetune": "pipeline/transformer"}


def recipe(folder: Path) -> dict[str, Any]:
    """A whole run in seconds: 32 px images, a row every step. The judge joins at step 10."""
    optim = {"lr": 1e-3, "warmup_steps": 5, "final_lr_factor": 0.1, "max_grad_norm": 1.0}
    common = {"steps": STEPS, "batch_size": 4, "log_every": 1, "precision": "fp32", "ema_decay": 0.9, "optim": optim}
    return {
        "device": "cpu",
        "data": {"kind": "solids", "count": 24, "test_count": 4, "seed": 1, "workers": 0},
        "pair": str(folder / "pair"),
        "image_size": 32,
        "tokenizer": common | {"adversarial": {"start_step": 10, "width": 4}, "calibration_images": 8},
        "cache": {"batch_size": 8},
        "finetune": common | {"detail_warmup_steps": 10, "condition_dropout": 0.3},
    }


def start(folder: Path, name: str, verb: str, values: dict[str, Any]) -> BaseProcess:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values | {"name": name}))
    return start_davae([verb, folder / f"{name}.yaml", "--runs-dir", folder], folder / f"{name}.log")


def status(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the pair and the run "straight", which nothing interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    build_tiny_pair(folder / "pair")
    assert status(start(folder, "straight", "run", recipe(folder))) == 0, (folder / "straight.log").read_text()
    return folder


def one_stage(folder: Path, stage: str, **settings: Any) -> dict[str, Any]:
    """The recipe of "straight" for one stage, on the results of "straight" before it."""
    values = recipe(folder)
    values[stage] |= settings
    if stage == "finetune":
        return values | {section: {"from": str(folder / "straight")} for section in ("tokenizer", "cache")}
    return {section: value for section, value in values.items() if section not in ("cache", "finetune")}


def rows(folder: Path, name: str, stage: str) -> list[dict[str, Any]]:
    path = folder / name / "stats.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last one may be half written
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


def wait_for(process: BaseProcess, folder: Path, name: str, stage: str, step: int) -> None:
    deadline = time.monotonic() + 60
    while not any(row["step"] >= step for row in rows(folder, name, stage)):
        assert process.is_alive(), (folder / f"{name}.log").read_text()
        assert time.monotonic() < deadline, f"step {step} of {name} never came"
        time.sleep(0.002)


def checkpoints(folder: Path, name: str, stage: str) -> list[int]:
    return sorted(int(path.name[-8:]) for path in (folder / name / "checkpoints" / stage).glob("checkpoint-*"))


def assert_as_if_nothing_happened(folder: Path, name: str, stage: str) -> None:
    """Same bits in the result, same curve, no step twice."""
    want = folder / "straight" / RESULTS[stage]
    assert any(path.suffix == ".safetensors" for path in want.iterdir())
    for path in want.iterdir():
        assert (folder / name / RESULTS[stage] / path.name).read_bytes() == path.read_bytes(), path.name
    curves = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows(folder, run, stage)]
        for run in (name, "straight")
    ]
    assert [row["step"] for row in curves[0]] == list(range(1, STEPS + 1))
    assert curves[0] == curves[1]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_steps(folder: Path, stage: str) -> None:
    name, values = f"killed-{stage}", one_stage(folder, stage, checkpoint_every=2)
    first = random.randrange(1, STEPS // 3)
    for step in (first, first + random.randrange(1, STEPS // 3)):
        print(f"killing at step {step}")  # noqa: T201 - for whoever reads the failure
        process = start(folder, name, STAGES[stage], values)
        wait_for(process, folder, name, stage, step)
        process.kill()
        assert status(process) == -signal.SIGKILL
    assert status(start(folder, name, STAGES[stage], values)) == 0
    assert_as_if_nothing_happened(folder, name, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_whole_group_saves_the_step_reached(folder: Path, stage: str, number: signal.Signals) -> None:
    name, values = f"{number.name}-{stage}", one_stage(folder, stage, checkpoint_every=1000)
    values["data"]["workers"] = 1  # the worker gets the signal too, as from Ctrl-C or a batch system
    process = start(folder, name, STAGES[stage], values)
    wait_for(process, folder, name, stage, random.randrange(1, STEPS // 2))
    os.killpg(process.pid, number)
    log = folder / f"{name}.log"
    assert status(process) == 128 + number, log.read_text()
    reached = rows(folder, name, stage)[-1]["step"]
    assert checkpoints(folder, name, stage) == [reached]
    assert f"Stopped by {number.name}; saved at step {reached}. Run the same command to go on." in log.read_text()
    assert not (folder / name / RESULTS[stage]).exists()
    assert status(start(folder, name, STAGES[stage], values)) == 0
    assert_as_if_nothing_happened(folder, name, stage)


def test_a_disk_that_fills_up(folder: Path) -> None:
    name, values = "full", one_stage(folder, "tokenizer", checkpoint_every=6)
    process = start(folder, name, "train-tokenizer", values)
    wait_for(process, folder, name, "tokenizer", 7)
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (40_000, limits[1]))  # less than a checkpoint's weights
    assert status(process) == 1
    log = (folder / f"{name}.log").read_text()
    assert "Could not save the checkpoint of step" in log
    assert "Free some space and run the same command again" in log
    assert "Traceback" not in log
    assert checkpoints(folder, name, "tokenizer")
    assert status(start(folder, name, "train-tokenizer", values)) == 0
    assert_as_if_nothing_happened(folder, name, "tokenizer")


def test_other_settings_do_not_go_on_from_here(folder: Path) -> None:
    name, values = "changed", one_stage(folder, "tokenizer", checkpoint_every=2)
    process = start(folder, name, "train-tokenizer", values)
    wait_for(process, folder, name, "tokenizer", 3)
    process.kill()
    process.join()
    values["tokenizer"]["align_weight"] = 0.25
    assert status(start(folder, name, "train-tokenizer", values)) == 1
    assert "tokenizer.align_weight: 0.5 -> 0.25" in (folder / f"{name}.log").read_text()
    assert checkpoints(folder, name, "tokenizer")
