"""`davae analyze` from folders to the page, on tiny untrained autoencoders."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davae import AutoencoderDA
from davae.evaluate.results import Results
from davae.run.paths import distinct_names
from davae.tools.analyze import analyze
from tiny_pair import tiny_autoencoder

Save = Callable[..., Path]


class Listener:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.told.append((stage, total))

    def advance(self, done: int, values: object = None) -> None:
        self.told.append((done,))

    def end(self) -> None:
        self.told.append(("end",))

    def say(self, message: str) -> None:
        self.told.append((message,))


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write an autoencoder to runs/NAME/tokenizer."""

    def write(name: str, detail: int = 4, is_calibrated: bool = True, seed: int = 0, base_seed: int = 1) -> Path:
        torch.manual_seed(base_seed)
        base = tiny_autoencoder()
        torch.manual_seed(seed)
        autoencoder = AutoencoderDA.from_base(base, scale=2, detail_channels=detail)
        if is_calibrated:
            autoencoder.calibrate(torch.zeros(detail), torch.full((detail,), 0.3))
        folder = tmp_path / "runs" / name / "tokenizer"
        autoencoder.save_pretrained(folder)
        return folder

    return write


def test_two_autoencoders_on_one_page(save: Save, tmp_path: Path) -> None:
    out = tmp_path / "out"
    page = analyze(save("one"), "solids", out, size=32, count=12, compare=[save("two", detail=8, seed=5)])
    assert page == out / "report.html"
    results = Results.load(out / "results.json")
    rows = {(item.group, item.row, item.column): item.value for item in results.measurements}
    for name in ("one", "two"):
        for variant in ("full", "zero detail", "random detail", "base upsampled"):
            assert ("Reconstruction", f"{name}: {variant}", "PSNR") in rows
        assert ("Alignment of each base channel", "channel 3", name) in rows
    spectrum = "energy above half of Nyquist"
    assert rows["Power spectrum", "one: base", spectrum] == rows["Power spectrum", "two: base", spectrum]
    assert rows["Power spectrum", "one: detail", spectrum] != rows["Power spectrum", "two: detail", spectrum]
    assert [row for _, row, _ in rows if "white noise" in row] == ["white noise, 4 x 4"] * 2, "one grid, one row"
    text = page.read_text()
    assert text.count("<img") == len(results.figures) == 5
    assert "one has 4 base and 4 detail channels on 4 x 4 positions" in text
    assert all(item.protocol["images"] == 12 for item in results.measurements)
    assert _rows_of_components(out) == 4, "input, the base that both share, and two details"


def test_autoencoders_with_bases_of_their_own_show_them(save: Save, tmp_path: Path) -> None:
    others = [save("two", base_seed=2), save("three", base_seed=3)]
    analyze(save("one"), "solids", tmp_path / "out", size=32, count=4, compare=others)
    assert _rows_of_components(tmp_path / "out") == 7


def _rows_of_components(out: Path) -> int:
    height = Image.open(out / "figures" / "components.png").height
    return (height + 2) // 130  # tiles of 128 px and 2 px between them


def test_the_same_again_is_the_same_bits(save: Save, tmp_path: Path) -> None:
    tokenizer = save("one")
    for out in ("a", "b"):
        analyze(tokenizer, "solids", tmp_path / out, size=32, count=5)
    files = {path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert len(files) == 2 + 4
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_images_of_a_folder_and_size_of_the_run(save: Save, tmp_path: Path) -> None:
    tokenizer = save("one", detail=2)
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50 + index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    with pytest.raises(ValueError, match="Give --size"):
        analyze(tokenizer, str(folder), tmp_path / "out")
    Image.new("RGB", (31, 99)).save(folder / "small.png")
    recipe = "name: one\ndata: {kind: solids}\nimage_size: 32\ntokenizer: {steps: 1, batch_size: 1}\n"
    (tokenizer.parent / "recipe.yaml").write_text(recipe)
    listener = Listener()
    analyze(tokenizer, str(folder), tmp_path / "out", count=3, observer=listener)
    assert "skipped small.png" in str(listener.told[0])
    results = Results.load(tmp_path / "out" / "results.json")
    assert results.measurements[-1].protocol["size"] == 32
    assert results.measurements[-1].protocol["images"] == 3
    assert "fewer detail than base channels (2 for 4)" in results.run["summary"]


def test_progress_is_told(save: Save, tmp_path: Path) -> None:
    listener = Listener()
    analyze(save("one"), "solids", tmp_path / "out", size=32, count=4, observer=listener)
    assert listener.told == [("analyze: one", 4), (4,), ("end",), ("measuring reconstruction: one",)]


def test_mistakes_are_named(save: Save, tmp_path: Path) -> None:
    out, tokenizer = tmp_path / "out", save("one")
    with pytest.raises(FileNotFoundError, match=r"got no config.json, expected AutoencoderDA"):
        analyze(tmp_path, "solids", out, size=32)
    base = tmp_path / "base"
    tiny_autoencoder().save_pretrained(base)
    with pytest.raises(FileNotFoundError, match="got AutoencoderDC, expected AutoencoderDA"):
        analyze(tokenizer, "solids", out, size=32, compare=[base])
    with pytest.raises(ValueError, match="raw/tokenizer is not calibrated"):
        analyze(save("raw", is_calibrated=False), "solids", out, size=32)
    for size in (36, 8):
        with pytest.raises(ValueError, match=f"Images of {size} px do not fit .* multiples of 8 from 16"):
            analyze(tokenizer, "solids", out, size=size)
    with pytest.raises(ValueError, match="belongs to a run or a model"):
        analyze(tokenizer, "solids", tokenizer, size=32)
    with pytest.raises(ValueError, match="compared with others than itself"):
        analyze(tokenizer, "solids", out, size=32, compare=[tokenizer])
    assert not out.exists()


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/r/demo/tokenizer"], ["demo"]),
        (["/r/demo/pipeline/vae"], ["demo"]),
        (["/r/demo/tokenizer", "/r/plain/tokenizer"], ["demo", "plain"]),
        (["/models/a", "/r/b/tokenizer"], ["a", "b"]),
        (["/r/demo/tokenizer", "/r/demo/pipeline/vae"], ["tokenizer", "vae"]),
        (["/r/x/demo/tokenizer", "/r/y/demo/tokenizer"], ["x/demo/tokenizer", "y/demo/tokenizer"]),
    ],
)
def test_names_tell_autoencoders_apart(paths: list[str], expected: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == expected


def test_results_are_plain_json_without_paths_of_the_output(save: Save, tmp_path: Path) -> None:
    analyze(save("one"), "solids", tmp_path / "out", size=32, count=4)
    text = (tmp_path / "out" / "results.json").read_text()
    assert not re.search(re.escape(str(tmp_path)), text)
    assert json.loads(text)["claims"] == []
