"""The table of a sweep: means, spreads, and what is best beyond them."""

from pathlib import Path
from typing import Literal

import pytest

from davae.evaluate.results import Measurement
from davae.report.sweep.table import SweptRun, Table, as_json, as_markdown, tabulate


def swept(
    cell: str, seed: int, psnr: float, better: Literal["higher", "lower", ""] = "higher", row: str = "full"
) -> SweptRun:
    measured = [
        Measurement("Reconstruction", row, "PSNR", psnr, "dB", better),
        Measurement("Speed", row, "time", 1.0),
    ]
    return SweptRun(cell, seed, Path(cell), "done", measurements=measured, seconds={"tokenizer": 60.0, "cache": 30.0})


def of(numbers: dict[str, list[float]], **about: str) -> Table:
    runs = [
        swept(cell, seed, value, **about) for cell, values in numbers.items() for seed, value in enumerate(values)
    ]  # type: ignore[arg-type]
    return tabulate(runs, ["Reconstruction / * / *"])


def bests(table: Table) -> list[str]:
    return [cell for cell in table.cells if table.is_best(cell, table.columns[0])]


def test_mean_and_standard_deviation_of_a_sample() -> None:
    table = of({"a": [28.0, 29.0, 30.0], "b": [20.0]})
    [column] = table.columns
    assert (table.scores["a", column].mean, table.scores["a", column].spread) == (29.0, 1.0)
    assert table.scores["b", column].spread is None
    assert table.shown("a", column) == "29.00 ± 1.00"
    assert table.shown("b", column) == "20.00"
    assert of({"a": [4], "b": [1600]}).shown("b", column) == "1,600"
    assert table.time("a") == "1 min 30 s"


@pytest.mark.parametrize(
    ("numbers", "better", "best"),
    [
        ({"a": [28.0, 28.2], "b": [29.0, 29.2]}, "higher", ["b"]),
        ({"a": [28.0, 28.2], "b": [29.0, 29.2]}, "lower", ["a"]),
        ({"a": [28.0, 28.2], "b": [29.0, 29.2]}, "", []),
        ({"a": [28.0, 29.0], "b": [29.0, 30.0]}, "higher", []),  # the spreads meet
        ({"a": [28.0], "b": [30.0]}, "higher", []),  # one seed has no spread
        ({"a": [28.0, 28.2], "b": [30.0]}, "higher", []),
        ({"a": [28.0, 28.2]}, "higher", []),  # better than whom?
    ],
)
def test_best_is_what_is_better_beyond_the_spread(
    numbers: dict[str, list[float]], better: str, best: list[str]
) -> None:
    assert bests(of(numbers, better=better)) == best


def test_no_cell_is_better_for_what_it_draws_without_detail() -> None:
    assert bests(of({"a": [28.0, 28.2], "b": [29.0, 29.2]}, row="zero detail")) == []


def test_a_failed_run_is_counted_and_named() -> None:
    failed = SweptRun("a", 1, Path("a"), "failed", "It has | no end.")
    table = tabulate([swept("a", 0, 28.0), failed, swept("b", 0, 29.0), swept("b", 1, 29.5)], ["* / * / PSNR"])
    assert [table.counted(cell) for cell in table.cells] == ["1 of 2, 1 failed", "2"]
    assert as_json(table)["cells"]["a"]["runs"]["1"]["failed"] == "It has | no end."
    assert as_json(table)["cells"]["b"]["scores"] == [
        {
            "mean": 29.25,
            "spread": pytest.approx(0.5**0.5 / 2),
            "n": 2,
            "best": False,
            "values": {"0": 29.0, "1": 29.5},
        }
    ]
    assert "| a | 1 of 2, 1 failed | 28.00 |" in as_markdown(table)
    assert "standard deviation over seeds" in as_markdown(table)


def test_columns_are_those_that_are_asked_for_in_this_order() -> None:
    runs = [swept("a", 0, 28.0)]
    assert [c.group for c in tabulate(runs, ["Speed / * / *", "Rec* / full / *"]).columns] == [
        "Speed",
        "Reconstruction",
    ]
    assert tabulate(runs, ["Reconstruction / full / SSIM"]).columns == []
