"""`stats.jsonl`: curves without gaps or doubles, whatever happened to the run."""

import json
from pathlib import Path

from davae.train.journal import Journal


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
