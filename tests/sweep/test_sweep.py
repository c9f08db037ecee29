"""A sweep at work: what is shared, what is gone on with, what fails, and what comes out."""

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from davae.cli import main
from davae.core.lock import locked
from davae.evaluate.results import Results
from davae.recipe import load_recipe
from davae.run.execute import Stage
from davae.run.run import Run
from davae.run.writer import LOCK
from davae.stages import tokenizer
from davae.sweep.document import load_sweep
from davae.sweep.sharing import Sharing, Waiting
from davae.sweep.sweep import run_sweep, swept_runs
from tiny_pair import start_davae
from tiny_run import run, skipped

SHORT = """
recipe: {recipe}
title: Starts
overlay: {{sample: null, evaluate: null}}
vary: {{finetune.init: [zero, random]}}
curves: []
"""
WHOLE = """
recipe: {recipe}
title: Starts
about: What does a start from zeros do?
overlay:
  sample: {{count: 4, steps: 1}}
  evaluate: {{claims: false, speed_batch: 0, reconstructions: 4}}
  finetune: {{preview: {{every: 1, count: 1, steps: 1}}}}
vary: {{finetune.init: [zero, random]}}
curves: [finetune / loss_*]
"""
RUNS = ["init-zero-seed0", "init-random-seed0"]


def written(folder: Path, recipe: Path, text: str, name: str = "starts") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(text.format(recipe=recipe))
    return file


def results(root: Path) -> dict[str, Any]:
    """What a sweep found, without what no two machines have in common."""
    table = json.loads((root / "table.json").read_text())
    for cell in table["cells"].values():
        for one in cell["runs"].values():
            one.pop("seconds")
    return table


def weights(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


def made(root: Path, stage: str) -> list[str]:
    """Runs that made what a stage leaves: trainings leave checkpoints."""
    return sorted(path.parts[-3] for path in root.glob(f"*/checkpoints/{stage}"))


@pytest.fixture(scope="module")
def swept(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a sweep that ran in one go, without samples."""
    folder = tmp_path_factory.mktemp("swept")
    assert main(["sweep", str(written(folder, recipe, SHORT)), "--runs-dir", str(folder)]) == 0
    return folder / "starts"


def test_what_no_cell_changes_is_trained_once(swept: Path) -> None:
    assert made(swept, "tokenizer") == [RUNS[0]]
    assert made(swept, "finetune") == sorted(RUNS)
    for part in ("tokenizer", "latents"):
        files = [file for file in (swept / RUNS[1] / part).rglob("*") if file.is_file()]
        assert files
        for file in files:
            assert file.samefile(swept / RUNS[0] / file.relative_to(swept / RUNS[1])), "a copy, not a link"


def test_a_run_of_a_sweep_is_an_ordinary_run(swept: Path) -> None:
    for name in RUNS:
        status, said = run(swept / name, swept)
        assert (status, skipped(said)) == (0, ["tokenizer", "cache", "finetune"])
    rows = [json.loads(line) for line in (swept / RUNS[1] / "stats.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["tokenizer"] * 3 + ["finetune"] * 3, "shared curves come along"


def test_a_run_that_was_shared_with_outlives_the_other(swept: Path, recipe: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(swept, tmp_path / "starts", copy_function=os.link))
    kept, before = root / RUNS[1], weights(root / RUNS[1])
    status, said = run(root / RUNS[0], root, "--set", "tokenizer.steps=1", "--overwrite", verb="train-tokenizer")
    assert status == 0, said
    assert weights(root / RUNS[0] / "tokenizer") != weights(kept / "tokenizer")
    assert weights(kept) == before


def test_killed_at_random_it_ends_with_the_same(swept: Path, recipe: Path, tmp_path: Path) -> None:
    file, log, draw = written(tmp_path, recipe, SHORT), tmp_path / "log", random.Random(0)
    arguments = ["sweep", file, "--runs-dir", tmp_path]
    for _ in range(2):
        process = start_davae(arguments, log)
        wait_for_steps(process, tmp_path / "starts", draw.randint(1, 4))
        time.sleep(draw.uniform(0, 0.1))
        if process.pid is not None and process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert ended(start_davae(arguments, log)) == 0, log.read_text()
    assert weights(tmp_path / "starts") == weights(swept)
    assert results(tmp_path / "starts") == results(swept)
    assert made(tmp_path / "starts", "tokenizer") == made(swept, "tokenizer")


def wait_for_steps(process: BaseProcess, root: Path, count: int) -> None:
    """Until so many steps more than now are logged, or it ended."""

    def logged() -> int:
        return sum(len(path.read_text().splitlines()) for path in root.glob("*/stats.jsonl"))

    before = logged()
    while process.is_alive() and logged() < before + count:
        time.sleep(0.01)


def ended(process: BaseProcess) -> int | None:
    process.join(120)
    return process.exitcode


def test_two_workers_share_the_work_and_make_nothing_twice(swept: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = ["sweep", written(tmp_path, recipe, SHORT), "--runs-dir", tmp_path]
    workers = [start_davae(arguments, tmp_path / f"log{place}") for place in range(2)]
    assert [ended(worker) for worker in workers] == [0, 0], (tmp_path / "log1").read_text()
    assert weights(tmp_path / "starts") == weights(swept)
    assert len(made(tmp_path / "starts", "tokenizer")) == 1
    for name in RUNS:
        stages = json.loads((tmp_path / "starts" / name / "run.json").read_text())["stages"]
        assert set(stages) == {"tokenizer", "cache", "finetune", "latents"}


@contextmanager
def held(root: Path, name: str, seconds: float) -> Iterator[None]:
    """Another worker has a run for some time."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(root / name / LOCK, "Run"):
            taken.set()
            over.wait(seconds)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield
    over.set()
    thread.join()


class Listener:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin(self, stage: str, total: int, done: int = 0) -> None: ...

    def advance(self, done: int, values: object = None) -> None: ...

    def end(self) -> None: ...

    def say(self, message: str) -> None:
        self.said.append(message)


def test_a_run_that_another_worker_has_is_passed_over_and_taken_when_that_is_gone(
    swept: Path, recipe: Path, tmp_path: Path
) -> None:
    planned, listener = load_sweep(written(tmp_path, recipe, SHORT), ["**.steps=1"]), Listener()
    with held(tmp_path / "starts", RUNS[0], 0.5):
        state = [one.state for one in swept_runs(planned, tmp_path / "starts")]
        assert state == ["at work", "waits"]
        run_sweep(planned, tmp_path, listener, pause=0.05)
    done = [line.partition(":")[0] for line in listener.said if line.endswith(": done")]
    assert done == RUNS[::-1]
    assert len([line for line in listener.said if "waits" in line]) == 1, "said once"


@pytest.fixture
def two(recipe: Path) -> dict[str, Any]:
    """Two runs whose tokenizers have the same inputs."""
    values = replace(load_recipe(recipe), sample=None, evaluate=None)
    return {name: replace(values, name=name) for name in ("first", "second")}


def test_what_another_run_has_begun_is_waited_for_while_it_will_run(two: dict[str, Any], tmp_path: Path) -> None:
    def killed(_: Run) -> None:
        raise KeyboardInterrupt

    will_run = True
    sharing = Sharing(tmp_path, two, lambda _: will_run)
    first, second = (Run(recipe, tmp_path) for recipe in two.values())

    def bring(run: Run, stage: Stage) -> None:
        sharing.shared(stage).run(run)

    with pytest.raises(KeyboardInterrupt):
        bring(first, replace(tokenizer.STAGE, run=killed))
    with pytest.raises(Waiting, match="first"):
        bring(second, tokenizer.STAGE)
    will_run = False  # it failed
    bring(second, tokenizer.STAGE)
    assert (second.folder.tokenizer / "config.json").is_file()


def test_a_cell_that_fails_is_shown_and_stops_no_other(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SHORT.replace(
        "vary: {{finetune.init: [zero, random]}}", "cells: {{lost: {{finetune.start: gone}}, well: {{}}}}"
    )
    file = written(tmp_path, recipe, text)
    arguments = ["sweep", str(file), "--runs-dir", str(tmp_path), "--set", "**.steps=1"]
    assert main(arguments) == 1
    root = tmp_path / "starts"
    sentence = "finetune.start names"
    out = capsys.readouterr()
    assert sentence in out.err and "Traceback" not in out.err
    assert sentence in (root / "sweep.html").read_text()
    table = json.loads((root / "table.json").read_text())["cells"]
    assert table["lost"]["runs"]["0"]["state"] == "failed"
    assert sentence in table["lost"]["runs"]["0"]["failed"]
    assert table["well"]["runs"]["0"]["state"] == "done"
    assert main(["sweep", str(root), "--status"]) == 0, "a look at a sweep is no failure"
    before = (root / "lost-seed0" / "failed.json").read_text()
    assert main(arguments) == 1, "who starts the sweep again tries it again"
    assert (root / "lost-seed0" / "failed.json").read_text() != before


def test_what_no_run_can_do_is_refused_before_the_first_trains(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SHORT.replace(
        "vary: {{finetune.init: [zero, random]}}", "cells: {{well: {{}}, none: {{sample.prompts: gone}}}}"
    )
    file = written(tmp_path, recipe, text.replace("sample: null, ", ""))
    assert main(["sweep", str(file), "--runs-dir", str(tmp_path)]) == 1
    assert "Cell 'none' cannot be run: There is no file" in capsys.readouterr().err
    assert not (tmp_path / "starts").exists()


def test_processes_of_a_launcher_are_refused(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sweep", str(written(tmp_path, recipe, SHORT)), "--runs-dir", str(tmp_path)]) == 1
    assert "several times on the same folder" in capsys.readouterr().err


def test_the_page_has_numbers_images_curves_and_cells(recipe: Path, tmp_path: Path) -> None:
    assert main(["sweep", str(written(tmp_path, recipe, WHOLE)), "--runs-dir", str(tmp_path)]) == 0
    root = tmp_path / "starts"
    page = (root / "sweep.html").read_text()
    text = re.sub(r"base64,[^\"]+", "", page)
    for words in (
        "What does a start from zeros do?",
        "standard deviation over seeds",
        "Generation: sliced Wasserstein distance",
        "energy above half of Nyquist",
        "grouped detail mean",
        "random detail",
        "Same seeds, every cell",
        "after 1, 2, 3 steps",
        "finetune: loss_base over steps",
        "finetune: loss_detail over steps",
        "finetune.init = random",
    ):
        assert words in text, words
    assert not re.search(r"https?://|@import", text)
    scores = json.loads((root / "table.json").read_text())
    columns = [(column["group"], column["row"], column["column"]) for column in scores["columns"]]
    psnr = scores["cells"]["init zero"]["scores"][columns.index(("Reconstruction", "full", "PSNR"))]
    [measured] = [
        item.value
        for item in Results.load(root / "init-zero-seed0" / "results.json").measurements
        if (item.row, item.column) == ("full", "PSNR")
    ]
    assert psnr == {"mean": measured, "spread": None, "n": 1, "best": False, "values": {"0": measured}}
    assert "| init random | 1 |" in (root / "table.md").read_text()
