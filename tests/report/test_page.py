"""The page: made from files alone, complete, well-formed, without a request, and safe to open."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
import torch

from davae.evaluate.results import Claim, Figure, Measurement, Results, View
from davae.report.figures import image_grid
from davae.report.page import write_report

HOSTILE = "<script>alert('x')</script>\" onload=\"x"
VOID = {"meta", "link", "img", "source", "br", "input"}


class _Checker(HTMLParser):
    """Collects text and attributes; fails on a tag that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")], attrs
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    image_grid(images, columns=2).save(run / "grid.png")
    shared = {"images": 8, "resize": "bicubic"}
    Results(
        run={"name": HOSTILE, "summary": "A tiny pair was upgraded.", "hardware": {"cpu": "An Engine", "gpu": None}},
        measurements=[
            Measurement("Reconstruction", "full", "PSNR", 27.412, "dB", "higher", {**shared, "rounding": "none"}),
            Measurement("Reconstruction", "base", "PSNR", 26.1, "dB", "higher", {**shared, "rounding": "none"}),
            Measurement("Reconstruction", "full", "SSIM", 0.81234, "", "higher", shared),
            Measurement("Speed", "throughput", "base", 10.0, "images/s", "higher", {}),
            Measurement("Speed", "throughput", "upgraded", 41.5, "images/s", "higher", {}),
            Measurement("Speed", "tokens", "base", 256, "", "lower", {}),
            Measurement("Speed", "tokens", "upgraded", 64, "", "lower", {}),
        ],
        figures=[Figure(HOSTILE, "Four images.", "grid.png")],
        claims=[Claim("Full beats base.", True, "27.41 against 26.10"), Claim("It rains.", False)],
    ).save(run / "results.json")
    (run / "run.json").write_text(
        json.dumps({"stages": {"tokenizer": {"seconds": 125.0}, "cache": {"seconds": 2.5}}})
    )
    (run / "recipe.yaml").write_text(f"name: {HOSTILE}\nsteps: 31337\n")
    rows = [
        {"stage": "finetune", "step": i, "loss": 1.5, "loss_base": 1.0, "loss_detail": 0.5, "images_per_second": 80.0}
        for i in range(5)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "stats.jsonl").write_text(text + '{"stage": "finetune", "st')  # killed while logging
    return run


def _check(path: Path) -> tuple[str, _Checker]:
    page = path.read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return page, checker


def test_page_shows_everything_and_asks_for_nothing(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page, checker = _check(path)
    assert "https://" not in page
    assert "http://" not in page
    assert "file:" not in page
    assert all(reference.startswith("data:") for reference in checker.references)
    assert checker.tags.count("script") == 1
    assert HOSTILE in checker.text
    for text in ("A tiny pair was upgraded.", "2 min 8 s in 2 stages", "1 of 2 hold", "does not hold", "31337"):
        assert text in checker.text
    for text in ("27.41", "0.812", "41.50", "256", "An Engine", "images/s", "bicubic", "median 80 images/s"):
        assert text in checker.text
    assert checker.tags.count("picture") == 2, "total apart from base and detail"
    assert not list(run_dir.glob(".*.tmp"))


def test_the_pages_own_script_is_the_only_one_that_runs(run_dir: Path) -> None:
    """A browser compares a script's hash with the policy; what a name or a caption smuggles in has none there."""
    page, _ = _check(write_report(run_dir))
    scripts = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    (allowed,) = re.findall('script-src ([^;"]*)', page)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert allowed == f"'sha256-{digest}'"
    assert len(scripts) == 1
    assert not re.search(r"fetch|import|XMLHttp|eval|innerHTML|http", scripts[0])


@pytest.mark.parametrize(("control", "end", "start"), [("wipe", 100, 50), ("dial", 2, 2)])
def test_several_pictures_keep_their_order_and_are_changed_by_a_slider(
    run_dir: Path, control: Literal["wipe", "dial"], end: int, start: int
) -> None:
    labels = ["zero", "half", "all"][: 2 if control == "wipe" else 3]
    results = Results.load(run_dir / "results.json")
    views = [View(label, "grid.png") for label in labels]
    results.figures.append(Figure("Detail", "More and less.", "grid.png", views, control))
    results.save(run_dir / "results.json")
    page, checker = _check(write_report(run_dir))
    assert f'class="views {control}"' in page
    assert f'<input type="range" min="0" max="{end}" value="{start}"' in page
    assert checker.tags.count("input") == 1
    assert re.findall(r'<div class="view"><span>(\w+)</span>', page) == labels
    (run_dir / "grid.png").unlink()
    with pytest.raises(FileNotFoundError, match="figure that is not there"):
        write_report(run_dir)


def test_best_is_emphasised_along_the_line_that_compares(run_dir: Path) -> None:
    page, _ = _check(write_report(run_dir))
    assert re.findall(r'<td class="best">([^<]*)</td>', page) == ["27.41", "41.50", "64"]


def test_reference_is_an_extra_block_of_columns(run_dir: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.json"
    Results(measurements=[Measurement("Reconstruction", "zero detail", "PSNR", 31.25, "dB", "higher")]).save(
        reference
    )
    _, checker = _check(write_report(run_dir, reference))
    for text in ("this run", "long run", "zero detail", "31.25", "27.41"):
        assert text in checker.text


def test_results_alone_are_enough(tmp_path: Path) -> None:
    Results(run={"name": "bare"}).save(tmp_path / "results.json")
    _, checker = _check(write_report(tmp_path))
    assert "bare" in checker.text
    assert "h2" not in checker.tags


def test_mistakes_are_named(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Run 'davae evaluate RECIPE' first"):
        write_report(tmp_path)
    (run_dir / "grid.png").unlink()
    with pytest.raises(FileNotFoundError, match="figure that is not there"):
        write_report(run_dir)


@pytest.mark.parametrize("damage", ["", '{"a', "null", "[]", "{}", '{"stages": {"tokenizer": 5}}'])
def test_damaged_state_is_named_or_passed_over(run_dir: Path, damage: str) -> None:
    rows = (run_dir / "stats.jsonl").read_text()
    (run_dir / "stats.jsonl").write_text(f"oops\n{damage}\n{rows}")  # a line of it
    page, _ = _check(write_report(run_dir))
    assert "finetune: loss over steps" in page
    (run_dir / "run.json").write_text(damage)
    if "5" not in damage:
        write_report(run_dir)
    (run_dir / "results.json").write_text(damage)
    with pytest.raises(ValueError, match=r"results\.json .*Run 'davae evaluate RECIPE' again"):
        write_report(run_dir)


def test_a_number_stands_with_its_interval_and_with_what_a_reader_has_to_know(tmp_path: Path) -> None:
    protocol = {"interval_95": [0.004, 0.006], "note": "KID of <few> images.", "left_out": 0, "real": {"path": "a_b"}}
    Results(measurements=[Measurement("Images", "drawn", "KID", 0.005, "", "lower", protocol)]).save(
        tmp_path / "results.json"
    )
    page = write_report(tmp_path).read_text()
    assert "0.00500<br><small>0.00400 to 0.00600</small>" in page
    assert "Beneath a number stands its 95% interval." in page
    notes, _, hidden = page.partition("<details>")
    assert "KID of &lt;few&gt; images." in notes and "KID of" not in hidden
    assert "<dt>left out</dt><dd>0</dd>" in hidden and "<dd>path a_b</dd>" in hidden
