"""`davae sample` as a stage: shared by processes, resumed, in other forms, and judged in bounded memory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davae.recipe import load_recipe
from davae.run.run import Run
from davae.run.samples import Samples
from davae.sampling.class_sampler import ClassSampler
from davae.stages import evaluate, sample
from tiny_run import run, skipped


def pixels(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))])


def latents(folder: Path) -> dict[str, int]:
    """Shards and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("latents-*.safetensors")}


def test_an_npz_is_made_of_what_is_drawn_already(recipe: Path, copied: Path) -> None:
    folder = copied / "samples"
    before, want = latents(folder), pixels(folder)
    status, said = run(recipe, copied.parent, "--set=sample.npz=true", verb="sample")
    assert status == 0, said
    assert latents(folder) == before
    with np.load(folder / "images.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], want)
    status, said = run(recipe, copied.parent, "--set=sample.npz=true", "--set=sample.png=false", verb="sample")
    assert status == 0, said
    assert latents(folder) == before
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jsonl", ".safetensors", ".npz", ".png"}
    assert [path.name for path in folder.glob("*.png")] == ["grid.png"]
    with np.load(folder / "images.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], want)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows[18:]] == ["plain sphere", "striped sphere"]
    assert skipped(run(recipe, copied.parent, "--set=sample.npz=true", "--set=sample.png=false", verb="sample")[1])


def test_processes_share_the_batches(recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied / "samples"
    want = pixels(folder)
    for path in folder.iterdir():
        path.unlink()
    drawn: dict[int, list[int]] = {0: [], 1: []}
    draw = ClassSampler.latents

    for process in (1, 0):  # the main process is the last to finish
        current = Run(load_recipe(recipe, ["sample.npz=true"]), copied.parent)
        current.__dict__["accelerator"] = SimpleNamespace(
            process_index=process,
            num_processes=2,
            is_main_process=process == 0,
            device=torch.device("cpu"),
            wait_for_everyone=lambda: None,
        )

        def noted(sampler: ClassSampler, indices: Any, process: int = process) -> torch.Tensor:
            drawn[process].append(indices[0])
            return draw(sampler, indices)

        monkeypatch.setattr(ClassSampler, "latents", noted)
        if process == 1:
            Samples(current).prepare()  # which the main process does before any other draws
        sample.STAGE.run(current)
    assert drawn == {0: [0, 16], 1: [8]}
    np.testing.assert_array_equal(pixels(folder), want)
    with np.load(folder / "images.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], want)


def test_a_batch_that_was_not_drawn_to_its_end_is_drawn_again(recipe: Path, copied: Path) -> None:
    folder = copied / "samples"
    before, want = latents(folder), pixels(folder)
    for name in ("latents-000008.safetensors", "000003.png", "grid.png"):
        (folder / name).unlink()
    status, said = run(recipe, copied.parent, verb="sample")
    assert status == 0, said
    after = latents(folder)
    assert {name for name in after if after[name] != before.get(name)} == {"latents-000008.safetensors"}
    np.testing.assert_array_equal(pixels(folder), want)


def test_no_more_images_are_judged_than_fit(recipe: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "JUDGED_IMAGES", 12)
    (copied / "results.json").unlink()
    status, said = run(recipe, copied.parent, "--set=evaluate.claims=false", verb="evaluate")
    assert status == 0, said
    rows = [m for m in json.loads((copied / "results.json").read_text())["measurements"] if "drawn" in m["protocol"]]
    assert {(m["protocol"]["generated"], m["protocol"]["real"]) for m in rows} == {(12, 12)}
    assert {m["protocol"]["drawn"]["seeds"] for m in rows} == {"0 to 11"}
