"""`stats.jsonl`: curves without gaps or doubles, whatever happened to the run."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from davae.train.journal import Journal, Window


def rows(path: Path) -> list[tuple[str, int]]:
    parsed = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["stage"], row["step"]) for row in parsed]


def written(path: Path, stage: str, *steps: int) -> Journal:
    journal = Journal(path, stage)
    for step in steps:
        journal.log(step, {"loss": step / 10})
    return journal


def test_a_row_has_stage_step_and_values(tmp_path: Path) -> None:
    path = tmp_path / "run" / "stats.jsonl"
    written(path, "tokenizer", 50).log(100, {"loss": 0.25, "psnr": 21.0})
    assert json.loads(path.read_text().splitlines()[1]) == {
        "stage": "tokenizer",
        "step": 100,
        "loss": 0.25,
        "psnr": 21.0,
    }


def test_a_resumed_curve_has_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    journal = written(path, "finetune", 5, 10, 15, 20)
    journal.rewind(10)  # the newest checkpoint is of step 10
    assert rows(path) == [("finetune", 5), ("finetune", 10)]
    written(path, "finetune", 15, 20, 25)
    assert rows(path) == [("finetune", step) for step in (5, 10, 15, 20, 25)]


def test_other_stages_keep_their_curves(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    written(path, "tokenizer", 100, 200)
    written(path, "finetune", 5, 10).rewind(0)
    assert rows(path) == [("tokenizer", 100), ("tokenizer", 200)]


def test_a_line_that_a_kill_cut_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    journal = written(path, "finetune", 5, 10)
    path.write_text(path.read_text()[:-9])
    journal.rewind(10)
    assert rows(path) == [("finetune", 5)]
    journal.log(10, {"loss": 1.0})
    assert rows(path) == [("finetune", 5), ("finetune", 10)]


def test_nothing_to_rewind_is_fine(tmp_path: Path) -> None:
    Journal(tmp_path / "stats.jsonl", "finetune").rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_journal_without_a_path_keeps_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(None, "finetune", 5).rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_rewind_on_a_full_disk_leaves_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stats.jsonl"
    journal = written(path, "finetune", 5, 10)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            journal.rewind(5)
    assert rows(path) == [("finetune", 5), ("finetune", 10)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_window_has_means_over_the_steps_that_had_the_value() -> None:
    window, accelerator = Window(batch_size=8), Accelerator(cpu=True)
    first = {"loss": torch.tensor(1.0), "whole": torch.tensor(3)}
    window.add(first)
    window.add({"loss": torch.tensor(2.0)})
    window.add({"loss": torch.tensor(6.0), "late": torch.tensor(0.5, dtype=torch.bfloat16)})
    row = window.close(accelerator)
    assert list(row) == ["loss", "whole", "late", "images_per_second"]
    assert row.pop("images_per_second") > 0
    assert row == {"loss": 3.0, "whole": 3.0, "late": 0.5}
    assert first["loss"] == 1.0  # what a step gave is not summed into
    window.add({"other": torch.tensor(7.0)})
    assert window.close(accelerator).keys() == {"other", "images_per_second"}
    assert window.close(accelerator) == {"images_per_second": 0.0}


def test_the_rate_is_that_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 104.0, 105.0, 105.0])
    monkeypatch.setattr("davae.train.journal.time.monotonic", lambda: next(clock))
    window, accelerator = Window(batch_size=6), Accelerator(cpu=True)
    for steps, rate in ((2, 3.0), (1, 6.0)):
        for _ in range(steps):
            window.add({})
        assert window.close(accelerator) == {"images_per_second": rate}
