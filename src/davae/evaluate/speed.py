"""Seconds and memory an image, side by side in one process."""

import resource
import sys
import time
from collections.abc import Callable, Mapping

import torch

from davae.evaluate.hardware import hardware
from davae.evaluate.results import Measurement


def measure_speed(
    draws: Mapping[str, Callable[[], object]],
    tokens: Mapping[str, int],
    images: int,
    device: torch.device,
    protocol: Mapping[str, object],
    repeats: int = 3,
) -> tuple[list[Measurement], dict[str, float]]:
    """Time complete draws of a batch, interleaved so that a noisy machine disturbs all alike.

    Args:
        draws: name -> function that draws `images` images.
        tokens: name -> tokens an image.
        images: images a draw.
        device: where they run.
        protocol: steps, guidance, precision.
        repeats: rounds; the fastest counts, after one warm-up.

    Returns:
        Measurements, and name -> seconds an image.
    """
    best = dict.fromkeys(draws, float("inf"))
    memory: dict[str, float] = {}
    for round_number in range(repeats + 1):
        for name, draw in draws.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = _timed(draw, device)
            if round_number > 0:
                best[name] = min(best[name], seconds / images)
            if device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(device) / 2**30
    full = {**protocol, "batch": images, "repeats": f"fastest of {repeats} after one warm-up", "hardware": hardware()}
    measurements = []
    for name in draws:
        measurements.append(Measurement("Speed", name, "tokens", tokens[name], "", "lower", full))
        measurements.append(Measurement("Speed", name, "time an image", best[name], "s", "lower", full))
        if name in memory:
            measurements.append(Measurement("Speed", name, "peak memory", memory[name], "GiB", "lower", full))
    if not memory:
        note = {**full, "memory": "highest resident memory of the whole process so far"}
        measurements.append(Measurement("Speed", "this process", "peak memory", peak_memory(), "GiB", "lower", note))
    return measurements, best


def peak_memory() -> float:
    """Highest resident memory of this process so far, GiB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def _timed(draw: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    draw()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
