"""docs/paper-map.md names files, functions and commands that exist, and its statuses are from the list."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from davae.cli import build_parser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "paper-map.md"
STATUSES = {"measured", "implemented", "needs a GPU", "not yet"}
STATUS = re.compile(r"`(?P<word>[^`]+)`(?:: (?P<what>\S.*))?")


def _rows() -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row under a header whose last column is the status."""
    rows, is_map = [], False
    for number, line in enumerate(PAGE.read_text().splitlines(), start=1):
        if not line.startswith("|"):
            is_map = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[-1] == "Status":
            is_map = True
        elif is_map and not set(line) <= set("|-"):
            rows.append((number, cells))
    return rows


ROWS = _rows()


def _spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@cache
def _names(path: Path) -> set[str]:
    """Functions, classes and assigned names of a Python file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names


def test_the_map_has_rows_of_one_shape() -> None:
    assert len(ROWS) > 100
    assert {len(cells) for _, cells in ROWS} == {5}


@pytest.mark.parametrize(("line", "cells"), ROWS, ids=[f"line-{line}" for line, _ in ROWS])
def test_row(line: int, cells: list[str]) -> None:
    source, _, files, command, status = cells
    assert source, "every row says where the statement stands"

    found = STATUS.fullmatch(status)
    assert found, f"line {line}: status {status!r} is not `word`, or `word`: what is missing or needed"
    assert found["word"] in STATUSES
    says_what = found["word"] in {"needs a GPU", "not yet"}
    assert (found["what"] is not None) == says_what, f"line {line}: what is missing or needed is said, and no more"
    assert found["word"] == "not yet" or files, f"line {line}: a status above `not yet` names its file"
    assert found["word"] not in {"measured", "needs a GPU"} or command, f"line {line}: a number names its command"

    for span in _spans(files):
        path, _, name = span.partition("::")
        assert (ROOT / path).is_file(), f"line {line}: there is no file {path}"
        assert not name or name in _names(ROOT / path), f"line {line}: {path} has no {name}"
    for span in _spans(command):
        program, *arguments = shlex.split(span)
        if program == "python":
            assert (ROOT / arguments[0]).is_file(), f"line {line}: {span}"
            continue
        assert program == "davae", f"line {line}: {span}"
        build_parser().parse_args(arguments)


def test_paths_and_commands_outside_the_tables_exist() -> None:
    for span in _spans(PAGE.read_text()):
        if re.fullmatch(r"(src|docs|tests|benchmarks)/[\w./-]+(::\w+)?", span):
            assert (ROOT / span.partition("::")[0]).is_file(), span
        if span.startswith("davae "):
            build_parser().parse_args(shlex.split(span)[1:])
