"""Two processes train what one does: the same curves, the same stop, the same checkpoints."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from conftest import assert_close
from tiny_pair import build_tiny_pair, free_port, start_davae, start_davae_twice

STEPS, JUDGE = 20, 16


def recipe(folder: Path, name: str) -> Path:
    """Two micro-batches of two images a step. Adaptive weights are those of the global micro-batch."""
    common = {"steps": STEPS, "batch_size": 4, "accumulation": 2, "log_every": 1, "precision": "fp32"}
    common |= {"ema_decay": 0.9, "optim": {"lr": 1e-3, "max_grad_norm": 1.0}}
    values = {
        "name": name,
        "device": "cpu",
        "data": {"kind": "solids", "count": 12, "test_count": 4, "seed": 1, "workers": 0},
        "pair": str(folder / "pair"),
        "image_size": 32,
        "tokenizer": common | {"adversarial": {"start_step": JUDGE, "width": 4}, "calibration_images": 8},
        "cache": {"batch_size": 8, "shard_size": 3},
        "finetune": common | {"detail_warmup_steps": 10, "condition_dropout": 0.3},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def rows(folder: Path, name: str, stage: str) -> list[dict[str, Any]]:
    path = folder / name / "stats.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [row for row in map(json.loads, lines) if row["stage"] == stage]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the pair and the run "one", trained by one process."""
    folder = tmp_path_factory.mktemp("processes")
    build_tiny_pair(folder / "pair")
    process = start_davae(["run", recipe(folder, "one"), "--runs-dir", folder], folder / "one.log")
    process.join(120)
    assert process.exitcode == 0, (folder / "one.log").read_text()
    return folder


def assert_same_curves(folder: Path, name: str, stage: str, last: int = STEPS) -> None:
    alone, shared = (rows(folder, run, stage) for run in ("one", name))
    assert [row["step"] for row in shared] == list(range(1, STEPS + 1))
    for want, got in zip(alone[:last], shared[:last], strict=True):
        assert want.keys() == got.keys()
        for key in want.keys() - {"stage", "images_per_second"}:
            assert got[key] == pytest.approx(want[key], rel=1e-5, abs=1e-6), (want["step"], key)


@pytest.mark.slow
def test_accelerate_launch_trains_what_one_process_does(folder: Path) -> None:
    # Without a GPU --multi_gpu starts processes over gloo; --cpu would start one and ask for mpirun.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port())]
    command = [sys.executable, *launch, "-m", "davae", "run", str(recipe(folder, "two")), "--runs-dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("widened LightningDiT") == 1, "both processes talk"

    assert_same_curves(folder, "two", "tokenizer", last=JUDGE)  # the judge normalises over its own images
    assert all(math.isfinite(row["adversarial"]) for row in rows(folder, "two", "tokenizer")[JUDGE:])


def in_two_processes(folder: Path, name: str, verb: str) -> list[Any]:
    """What the launcher does, without its start-up."""
    return start_davae_twice([verb, folder / f"{name}.yaml", "--runs-dir", folder], folder, name)


def finetuning(folder: Path, name: str) -> None:
    """The recipe of a fine-tuning on the tokenizer and cache of "one"."""
    path = recipe(folder, name)
    reused = {section: {"from": str(folder / "one")} for section in ("tokenizer", "cache")}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | reused))


def statuses(processes: list[Any]) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_two_processes_encode_one_cache(folder: Path) -> None:
    path = recipe(folder, "pair-cache")
    values = yaml.safe_load(path.read_text()) | {"tokenizer": {"from": str(folder / "one")}}
    path.write_text(yaml.safe_dump(values))
    assert statuses(in_two_processes(folder, "pair-cache", "cache")) == [0, 0]
    alone, shared = (
        {file.name: file.read_bytes() for file in (folder / name / "latents").iterdir()}
        for name in ("one", "pair-cache")
    )
    assert len(alone) == 5  # four shards and the manifest
    assert shared == alone


def assert_same_weights(folder: Path, name: str) -> None:
    file = "pipeline/transformer/diffusion_pytorch_model.safetensors"
    want, got = (load_file(folder / run / file) for run in ("one", name))
    for key, tensor in want.items():
        assert_close(got[key], tensor, 1e-4)


def test_two_processes_share_the_batch(folder: Path) -> None:
    finetuning(folder, "pair-finetune")
    assert statuses(in_two_processes(folder, "pair-finetune", "finetune")) == [0, 0]
    assert_same_curves(folder, "pair-finetune", "finetune")
    assert_same_weights(folder, "pair-finetune")


def test_a_signal_to_one_process_stops_both_and_one_process_goes_on(folder: Path) -> None:
    name = "pair-stopped"
    finetuning(folder, name)
    processes = in_two_processes(folder, name, "finetune")
    deadline = time.monotonic() + 60
    while not rows(folder, name, "finetune") and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(processes[random.randrange(2)].pid, signal.SIGTERM)
    assert statuses(processes) == [128 + signal.SIGTERM] * 2, (folder / f"{name}-0.log").read_text()
    reached = rows(folder, name, "finetune")[-1]["step"]
    assert reached < STEPS
    (checkpoint,) = (folder / name / "checkpoints" / "finetune").iterdir()
    assert checkpoint.name == f"checkpoint-{reached:08d}"

    alone = start_davae(["finetune", folder / f"{name}.yaml", "--runs-dir", folder], folder / f"{name}.log")
    assert statuses([alone]) == [0]
    assert_same_curves(folder, name, "finetune")
    assert_same_weights(folder, name)
