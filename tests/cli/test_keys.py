"""`davae keys`: what a recipe can say, on a terminal or in a pipe."""

import re
import subprocess
import sys

import pytest

from davae.cli import main
from davae.recipe.keys import describe_keys, markdown_page


def keys(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["keys", *arguments]) == 0
    return capsys.readouterr().out


def test_a_section_is_printed_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = keys(capsys, "finetune.optim")
    assert max(map(len, text.splitlines())) <= 80
    assert re.findall(r"^\S+", text, re.MULTILINE) == [key.name for key in describe_keys("finetune.optim")]
    assert (
        "finetune.optim.max_grad_norm  number or null: more than 0; default: null\n    Gradients are scaled down"
        in text
    )


def test_all_keys_are_printed_without_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    text = keys(capsys)
    assert re.findall(r"^\S+", text, re.MULTILINE) == [key.name for key in describe_keys()]
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text


def test_markdown_is_the_page_or_a_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    page = keys(capsys, "--markdown")
    assert page == markdown_page()
    part = keys(capsys, "cache", "--markdown")
    assert part.startswith("## cache\n")
    assert part in page


def test_a_key_alone_has_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        keys(capsys, "seed", "--markdown").splitlines()[-1]
        == "| `seed` | integer: at least 0 | `0` | Of everything random in the run. |"
    )


def test_an_unknown_prefix_is_one_line_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "finetune.stepz"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "davae: A recipe has no key 'finetune.stepz'. Did you mean finetune.steps?\n"


def test_a_pipe_that_is_closed_early_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m davae keys | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout == "name  text; required\n"
    assert "Traceback" not in done.stderr
