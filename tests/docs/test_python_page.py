"""docs/how-to/python.md does what it says: its code runs, block after block, on a tiny recipe."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import davae

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "python.md"


def blocks() -> list[str]:
    """The Python blocks, each at its line of the page, so that errors point there."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


def test_the_code_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks():
        exec(compile(block, str(PAGE), "exec"), names)

    assert isinstance(names["recipe"], davae.Recipe)
    assert names["recipe"].finetune.optim.lr == 5e-4
    assert names["built"].tokenizer.optim.lr == 3e-4
    assert [variant.seed for variant in names["variants"]] == [1, 2]

    run = names["run"]
    assert run.folder.root == Path("runs/first")
    assert run.folder.report.is_file()
    assert [step for step, _ in names["detail"]] == [1, 2, 3]
    assert "full" in names["psnr"]
    assert [type(image) for image in names["images"]] == [Image.Image] * 3
    assert {image.size for image in names["images"]} == {(32, 32)}

    printed = capsys.readouterr().out
    assert "tokenizer 1/3 {'loss_autoencoder':" in printed
    assert "tokenizer: done before, skipped" in printed
    assert "finetune: done\n" in printed


def test_the_observer_is_ten_lines_and_fits() -> None:
    [block] = [block.strip() for block in blocks() if "class Lines" in block]
    assert len([line for line in block.splitlines() if line and '"""' not in line]) <= 10
    names: dict[str, Any] = {}
    exec(block, names)
    methods = {name for name in vars(davae.Observer) if not name.startswith("_")}
    assert methods == {"begin", "advance", "end", "say"} <= set(vars(names["Lines"]))
