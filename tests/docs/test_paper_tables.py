"""The paper's tables as data: they say what the map says, their commands exist, and ours stand in EXPERIMENTS.md."""

import re
import shlex
from pathlib import Path

import pytest

from davae.cli import build_parser
from davae.evaluate.metrics import feature_metrics
from davae.recipe import load_recipe
from davae.report.tables import PaperTable, paper_tables

ROOT = Path(__file__).parents[2]
TABLES = paper_tables()
FIGURE = re.compile(r"\d+\.\d+")
COMMANDS = sorted(
    {
        command
        for table in TABLES.values()
        for commands in (*table.makers.values(), *table.judges.values(), [item.command for item in table.ours])
        for command in commands
    }
)


def rows_of_the_map() -> dict[str, str]:
    """First cell -> second cell of every row."""
    lines = [line.strip("|").split("|") for line in (ROOT / "docs" / "paper-map.md").read_text().splitlines()]
    return {cells[0].strip(): cells[1].strip() for cells in lines if len(cells) == 5}


def linked_figures() -> dict[str, set[float]]:
    """Row of the map -> figures of all rows of the tables that name it."""
    figures: dict[str, set[float]] = {}
    for table in TABLES.values():
        for row in table.rows.values():
            for source in row.map:
                figures.setdefault(source, set()).update(v for v in row.values.values() if isinstance(v, float))
    return figures


@pytest.mark.parametrize("source", sorted(linked_figures()))
def test_the_map_states_the_same_figures(source: str) -> None:
    rows = rows_of_the_map()
    assert source in rows, "the map has no row of this name"
    stated = {float(number) for number in FIGURE.findall(rows[source])}
    assert stated, f"the map states no figure: {rows[source]}"
    assert stated <= linked_figures()[source]


def test_rows_of_the_map_that_state_a_table_are_linked() -> None:
    linked = linked_figures()
    tables = re.compile(r"P: rows? |P: alignment weight|P: component rows,|S3: (full|base)|S5: Table S2, ")
    stated = [source for source, text in rows_of_the_map().items() if tables.match(source) and FIGURE.search(text)]
    assert len(stated) > 25
    assert not [source for source in stated if source not in linked]


def test_every_row_of_a_measured_table_says_how_it_is_made_or_why_not() -> None:
    for name, table in TABLES.items():
        if any(column.judge for column in table.columns.values()):
            for title, row in table.rows.items():
                assert bool(row.make) != bool(row.blocked), f"{name}, {title}"
                assert row.map, f"{name}, {title}: the map has its figures too"
                assert set(row.values) <= set(table.columns), f"{name}, {title}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "python":
        assert (ROOT / arguments[0]).is_file()
        return
    assert program == "davae"
    options = build_parser().parse_args(arguments)
    recipe = getattr(options, "recipe", None) or getattr(options, "source", None)
    if str(recipe).startswith("recipes/"):
        load_recipe(ROOT / str(recipe), options.set)


def judging_commands() -> list[str]:
    """Those of the tables and of the map that judge images by features."""
    on_the_map = re.findall(r"`(davae evaluate [^`]+)`", (ROOT / "docs" / "paper-map.md").read_text())
    judging = (c for c in {*COMMANDS, *on_the_map} if "--images" in c and "--metrics" in c and "--prompts" not in c)
    return sorted(judging)


@pytest.mark.parametrize("command", judging_commands())
def test_images_are_judged_with_a_reference_where_a_metric_compares_and_else_without(command: str) -> None:
    options = build_parser().parse_args(shlex.split(command)[1:])
    compares = any(metric.needs == "reference" for metric in feature_metrics(options.metrics.split(",")))
    assert compares == (options.reference is not None)


def test_judging_commands_are_found() -> None:
    assert len(judging_commands()) > 5


def _experiments() -> dict[str, str]:
    """Heading -> text."""
    _, *found = re.split(r"^## (.+)$", (ROOT / "EXPERIMENTS.md").read_text(), flags=re.MULTILINE)
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("name", [name for name, table in TABLES.items() if table.ours])
def test_our_figures_stand_in_the_record_of_experiments(name: str) -> None:
    table: PaperTable = TABLES[name]
    record = _experiments()
    for line in table.lines:
        if line.experiment is not None:
            heading = table.ours[line.experiment - 1].experiment
            assert heading in record, f"EXPERIMENTS.md has no '## {heading}'"
            for column in line.values:
                shown = table.shown(line, column)
                assert re.search(rf"(?<![\d.]){re.escape(shown)}(?!\d)", record[heading]), f"{heading}: {shown}"
