"""`davae evaluate` of a run on two processes: each image once, and the numbers that one process finds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from davae.run.image_sets import ImageSets
from tiny_pair import start_davae_twice


def numbers(results: Path) -> dict[tuple[str, str, str], float]:
    """But those of speed, which are the machine's."""
    measurements: list[dict[str, Any]] = json.loads(results.read_text())["measurements"]
    return {(m["group"], m["row"], m["column"]): m["value"] for m in measurements if m["group"] != "Speed"}


def test_two_processes_find_what_one_does(recipe: Path, copied: Path) -> None:
    alone = numbers(copied / "results.json")
    assert {group.partition(":")[0] for group, _, _ in alone} == {"Reconstruction", "Generation"}
    (copied / "results.json").unlink()
    processes = start_davae_twice(
        ["evaluate", recipe, "--runs-dir", copied.parent, "--set", "evaluate.speed_batch=0"], copied.parent, "two"
    )
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], (copied.parent / "two-0.log").read_text()
    assert numbers(copied / "results.json") == pytest.approx(alone, rel=1e-6)
    assert (copied.parent / "two-1.log").read_text() == "", "one process talks"
    assert not (copied / ".judged.tmp").exists()


def test_sets_are_what_was_written(tmp_path: Path) -> None:
    sets = ImageSets(tmp_path / "sets", {"a": 5, "b": 2}, 4)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    sets.begin()
    sets.write("a", 3, images[3:])  # another process may be earlier
    sets.write("a", 0, images[:3])
    sets.write("b", 0, images[:2].contiguous(memory_format=torch.channels_last))
    found = sets.read()
    assert torch.equal(found["a"], images)
    assert torch.equal(found["b"], images[:2])
