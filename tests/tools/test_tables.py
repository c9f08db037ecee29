"""`davae tables`: what a terminal and a page show."""

import re
from pathlib import Path

import pytest

from davae.cli import main
from davae.report.tables import PaperTable, write_page
from davae.report.tables.tables import Column, Experiment, OurRow, PaperRow, paper_tables

TABLE = PaperTable(
    title="A <table>",
    source="P",
    protocol="10 images",
    columns={"FID": Column(digits=2, better="lower", judge=("judge it",)), "IS": Column(judge=("judge it",))},
    rows={
        "theirs": PaperRow(values={"FID": 1.5}, make=("make it",)),
        "others": PaperRow(values={"FID": 2.0, "IS": 3.0}, make=("make it",)),
        "secret": PaperRow(values={"FID": 9.0}, blocked="no weights"),
    },
    ours=(
        Experiment(
            table="t",
            experiment="2026-11-21: x",
            protocol="2 images",
            hardware="a CPU",
            command="davae demo",
            rows={"small": OurRow(values={"FID": 4.0}, like="others"), "alone": OurRow(values={"FID": 5.0})},
            digits={"FID": 3},
        ),
        Experiment(
            table="t",
            experiment="2026-11-21: y",
            protocol="other images",
            hardware="a CPU",
            command="davae demo",
            rows={"quick": OurRow(values={"s": 2.0}, like="theirs")},
        ),
    ),
)


def test_ours_stand_beneath_what_they_are_like_with_their_own_digits() -> None:
    shown = [(line.name, [TABLE.shown(line, column) for column in TABLE.columns]) for line in TABLE.lines]
    assert shown == [
        ("theirs", ["1.50", ""]),
        ("others", ["2.00", "3.00"]),
        ("small", ["4.000", ""]),
        ("secret", ["9.00", ""]),
        ("alone", ["5.000", ""]),
    ]


def test_what_measured_something_else_has_a_table_of_its_own() -> None:
    assert list(TABLE.apart) == [2]
    [line] = TABLE.lines_apart(2)
    assert (line.name, line.about, TABLE.shown(line, "s")) == ("quick", "as theirs", "2.0")
    assert TABLE.makers == {"theirs; others": ("make it",)}
    assert TABLE.judges == {"FID; IS": ("judge it",)}
    assert TABLE.blocked == {"secret": "no weights"}


def test_the_page_has_all_of_it_and_asks_for_nothing(tmp_path: Path) -> None:
    text = write_page({"t": TABLE}, tmp_path / "deep" / "t.html").read_text()
    for part in ("A &lt;table&gt;", "4.000", "2 images", "a CPU", "davae demo", "judge it", "no weights", "make it"):
        assert part in text, part
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_a_terminal_shows_a_table_with_commands_that_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["tables", "s2", "--out", str(tmp_path / "s2.html")]) == 0
    captured = capsys.readouterr()
    assert "11.02" in captured.out and "never published" in captured.out
    assert "Weight of the alignment" not in captured.out
    for command in paper_tables()["s2"].rows["512 + Bilinear"].make:
        assert f"      {command}\n" in captured.out
    assert f"page: {tmp_path / 's2.html'}" in captured.err
    assert "11.02" in (tmp_path / "s2.html").read_text()


def test_all_tables_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables"]) == 0
    text = capsys.readouterr().out
    assert all(f"[{name}]" in text for name in paper_tables())


def test_names_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "imagnet"]) == 1
    assert "There is no table 'imagnet'; allowed are text-to-image" in (text := capsys.readouterr().err)
    assert "Did you mean 'imagenet'?" in text
    assert main(["tables", "s2", "--out", str(tmp_path)]) == 1
    assert "it is a folder. Name a file" in capsys.readouterr().err
