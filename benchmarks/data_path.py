"""How long a fine-tuning step waits for its data: SD3.5 at 1024 px, from a latent and a prompt cache made up on disk.

    python benchmarks/data_path.py                                        0, 1 and 4 workers, a step of half a second
    python benchmarks/data_path.py --workers 8 --step-seconds 1.2 --batch 8 --cold --folder /data/scratch

The training loop, the feed and both caches are the library's own; only the model is not: its step sleeps, as a
process does whose GPU is busy. A sample is a latent [32, 64, 64] with 16 detail channels, fp32 (mean 512 KiB,
log-variance 256 KiB), and embeddings [333, 4096] + [2048] in bf16 (2.6 MiB). A batch is read, drawn from its
posterior, joined by its noise, and copied to the device. The aim is a wait under 3% of a step.

    prepare     one batch in this process, part by part, the fastest of several; a step of that long with one worker,
                or of half as long with two, is where the loader becomes the bottleneck
    wait        between two steps, median over the steps after the first ones
    share       wait plus copy to the device, in per cent of a step
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from davae.core.layout import LatentLayout
from davae.core.randomness import normal
from davae.data.cache_files import shard_ranges
from davae.data.latent_cache import CacheManifest, LatentCache, write_cache
from davae.data.prompt_cache import PromptCache, PromptManifest, PromptSet, write_prompts
from davae.evaluate.hardware import hardware
from davae.train.batch import Batch
from davae.train.conditions import Prompts
from davae.train.feed import Share, feed
from davae.train.latent_set import LatentSet, draws
from davae.train.loop import train
from davae.train.settings import LoopConfig, OptimConfig
from davae.train.task import Learner, Loss

LAYOUT, SIDE, PIXELS = LatentLayout(16, 16), 64, 1024
EMBEDDINGS = {"prompt_embeds": (333, 4096), "pooled_prompt_embeds": (2048,)}
AIM = 0.03
WARM_UP = 3
"""Steps that do not count: workers start, files are opened."""


def made_up_caches(folder: Path, samples: int, shard: int) -> None:
    """A latent cache and a prompt cache of `samples` samples, every one of them written out."""
    names = [f"sample-{number:06d}" for number in range(samples)]
    captions = {name: (f"caption of {name}",) for name in names}
    manifest = CacheManifest(
        layout=LAYOUT,
        autoencoder="made up",
        source="made up",
        size=PIXELS,
        flips=False,
        dtype="float32",
        shift=(0.0,) * LAYOUT.channels,
        scale=(1.0,) * LAYOUT.channels,
        ids=tuple(names),
    )

    def moments(count: int) -> dict[str, Tensor]:
        sizes = {"mean": LAYOUT.channels, "logvar": LAYOUT.detail_channels}
        return {name: torch.zeros(count, channels, SIDE, SIDE) - 1 for name, channels in sizes.items()}

    shards = ((first, count, lambda count=count: moments(count)) for first, count in shard_ranges(samples, shard))
    write_cache(folder / "latents", manifest, shards)
    prompts = PromptSet.of(captions)
    described = PromptManifest(
        encoders="made up",
        max_length=256,
        dtype="bfloat16",
        source=prompts.fingerprint,
        tensors={name: ("bfloat16", shape) for name, shape in EMBEDDINGS.items()},
    )

    def embeddings(first: int, count: int) -> dict[str, Tensor]:
        return {name: torch.ones(count, *shape, dtype=torch.bfloat16) for name, shape in EMBEDDINGS.items()}

    write_prompts(folder / "prompts", described, prompts, shard, embeddings)


def training_set(folder: Path, batch: int) -> LatentSet:
    """What the fine-tuning stage reads."""
    cache = LatentCache(folder / "latents")
    conditions = Prompts(PromptCache(folder / "prompts"), cache.manifest.ids, dropout=0.1, seed=0)
    return LatentSet(cache, conditions, seed=0, flips=False, batch_size=batch)


class Sleeper:
    """A task whose step takes a given time and next to no computation."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.state: dict[str, Tensor] = {}
        self.learners = {"sleeper": Learner(nn.Linear(1, 1), OptimConfig())}

    def is_active(self, learner: str, step: int) -> bool:
        """Always."""
        return True

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """A scalar that hangs on the network, after the nap."""
        if batch["latent"].is_cuda:
            torch.cuda.synchronize()
        time.sleep(self.seconds)
        return Loss(network(batch["latent"].mean().view(1, 1)).mean())


def waits(folder: Path, arguments: argparse.Namespace, workers: int) -> dict[str, float]:
    """Train for some steps; milliseconds that the loop waited for a batch."""
    config = LoopConfig(steps=arguments.steps, batch_size=arguments.batch, precision="fp32")
    rows = training_set(folder, arguments.batch)
    seconds: list[float] = []

    def timed(start: int) -> Iterator[list[Batch]]:
        batches = feed(rows, Share(config.batch_size), start, config.steps, workers)
        while True:
            asked = time.perf_counter()
            micros = next(batches, None)
            seconds.append(time.perf_counter() - asked)
            if micros is None:
                return
            yield micros

    started = time.perf_counter()
    train(Sleeper(arguments.step_seconds), timed, config, Accelerator(cpu=not torch.cuda.is_available()))
    steady = seconds[WARM_UP : config.steps]
    return {
        "workers": workers,
        "wait_ms": 1000 * statistics.median(steady),
        "largest_ms": 1000 * max(steady),
        "first_ms": 1000 * seconds[0],
        "step_ms": 1000 * (time.perf_counter() - started) / config.steps,
    }


def fastest(run: Callable[[int], Any], repeats: int = 8) -> float:
    """Milliseconds of the fastest of several calls; each is told its number, and the first does not count."""
    best = float("inf")
    for number in range(repeats + 1):
        started = time.perf_counter()
        run(number)
        if number:
            best = min(best, time.perf_counter() - started)
    return 1000 * best


def parts(folder: Path, batch: int) -> dict[str, float]:
    """Milliseconds of a batch's preparation, as a whole and part by part, on samples that were not just read."""
    rows = training_set(folder, batch)

    def positions(number: int) -> list[int]:
        return list(range(number * batch, (number + 1) * batch))

    def indices(number: int) -> list[int]:
        return rows.order.indices(positions(number))

    shape = (LAYOUT.detail_channels, SIDE, SIDE)
    whole = rows.__getitems__(positions(0))
    result = {
        "latents": fastest(lambda number: rows.cache.moments(indices(number))),
        "posterior": fastest(lambda number: normal(0, "posterior", positions(number), shape)),
        "noise": fastest(lambda number: draws(0, positions(number), whole["latent"].shape[1:])),
        "prompts": fastest(lambda number: rows.conditions.batch(indices(number), positions(number))),
        "whole batch": fastest(lambda number: rows.__getitems__(positions(number))),
    }
    if torch.cuda.is_available():
        pinned = {name: tensor.pin_memory() for name, tensor in whole.items()}

        def copy(_: int) -> None:
            for tensor in pinned.values():
                tensor.to("cuda", non_blocking=True)
            torch.cuda.synchronize()

        result["copy to device"] = fastest(copy)
    return result


def forget(folder: Path) -> None:
    """Ask the system (Linux) to drop the files from its page cache, so that the next read is from the disk."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Parts of a batch, and the waits for each number of workers."""
    made_up_caches(folder, arguments.samples, arguments.shard)
    prepared = parts(folder, arguments.batch)
    copy = prepared.get("copy to device", 0.0)
    rows = []
    for workers in arguments.workers:
        if arguments.cold:
            forget(folder)
        row = waits(folder, arguments, workers)
        row["share"] = (row["wait_ms"] + copy) / (row["wait_ms"] + copy + 1000 * arguments.step_seconds)
        rows.append(row)
    return {"parts_ms": prepared, "waits": rows}


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 4])
    parser.add_argument("--step-seconds", type=float, default=0.5, help="how long a step of the model takes")
    parser.add_argument("--batch", type=int, default=8, help="images of a micro-batch")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--samples", type=int, default=256, help="3.4 MiB each, on disk")
    parser.add_argument("--shard", type=int, default=64, help="samples in a file")
    parser.add_argument(
        "--cold", action="store_true", help="drop the files from memory before each number of workers"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the caches are made for a while; a temporary one without it"
    )
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    arguments = parser.parse_args(given)
    if arguments.steps <= WARM_UP:
        parser.error(f"--steps must be more than {WARM_UP}; got {arguments.steps}")
    return arguments


def main() -> int:
    """Make the caches, measure, print, clean up."""
    arguments = parse()
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than there are cores, on purpose
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments)
    print(json.dumps(hardware()))
    prepared = result["parts_ms"]
    print(f"a batch of {arguments.batch}: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in prepared.items()))
    print("| workers | wait | largest | first batch | share of a step |\n|---|---|---|---|---|")
    for row in result["waits"]:
        print(
            f"| {row['workers']} | {row['wait_ms']:.1f} ms | {row['largest_ms']:.1f} ms | {row['first_ms']:.0f} ms | "
            f"{100 * row['share']:.1f}% |"
        )
    whole = prepared["whole batch"]
    print(
        f"without workers the wait is {AIM:.0%} of a step of {whole / AIM / 1000:.2f} s; with them, the loader keeps"
    )
    print(f"up with steps of {whole:.0f} ms for one worker, {whole / 4:.0f} ms for four on cores of their own")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in vars(arguments).items() if name not in ("folder", "out")}
        report = {"hardware": hardware(), "protocol": {**settings, "columns": __doc__}, **result}
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
