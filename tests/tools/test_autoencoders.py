"""`davae evaluate --autoencoders` from folders to files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

import davae
from davae.core.observer import Silent
from davae.evaluate.results import Measurement, Results
from davae.evaluate.similarity import psnr
from davae.tools.autoencoders import evaluate_autoencoders, table_of
from tiny_pair import build_tiny_pair, tiny_autoencoder

SIZES = {"a.png": (43, 30), "b/c.jpg": (24, 50)}  # width, height


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A pipeline and an upgraded autoencoder in a run."""
    folder = tmp_path_factory.mktemp("autoencoders")
    build_tiny_pair(folder / "pair")
    upgraded = davae.AutoencoderDA.from_base(tiny_autoencoder())
    upgraded.calibrate(torch.zeros(4), torch.ones(4))
    upgraded.save_pretrained(folder / "run" / "tokenizer")
    return [str(folder / "pair"), str(folder / "run" / "tokenizer")]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    Image.new("RGB", (15, 80)).save(folder / "small.png")
    return folder


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_the_table_is_made_and_written(autoencoders: list[str], images: Path, tmp_path: Path) -> None:
    listener, out = Listener(), tmp_path / "out"
    results = evaluate_autoencoders(autoencoders, images, out=out, observer=listener)
    rows = list(dict.fromkeys(m.row for m in results.measurements))
    assert [row for row in rows if "," not in row] == ["pair", "run"]
    protocol = results.measurements[0].protocol
    assert protocol["images"] == 2
    assert protocol["preprocessing"] == "whole, cropped at the centre to multiples of 8 px"
    assert any("small.png: too small" in line for line in listener.said)
    left_out = [line for line in listener.said if line.startswith("LPIPS is left out.")]
    assert str(tmp_path / "cache" / "vgg16-397923af.pth") in left_out[0]
    assert "LPIPS is left out" in results.run["summary"]

    assert Results.load(out / "results.json") == results
    page = (out / "report.html").read_text()
    assert "run" in page
    assert "The worst and the best image" in page
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["checked"]  # nothing was fetched

    text = io.StringIO()
    Console(file=text, width=140).print(table_of(results))
    line = next(line for line in text.getvalue().splitlines() if line.startswith("│ run "))
    assert f"{next(m.value for m in results.measurements if m.row == 'run'):.2f}" in line
    assert "LPIPS" not in text.getvalue().splitlines()[1]


def test_whole_images_lose_only_their_margins(autoencoders: list[str], images: Path) -> None:
    (images / "b" / "c.jpg").unlink()
    results = evaluate_autoencoders(autoencoders[:1], images)
    pixels = np.asarray(Image.open(images / "a.png"))[3:27, 1:41]  # 43 x 30 -> 40 x 24
    target = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    small = resized(target, 0.5)
    want = psnr(resized(small, 2).clamp(0, 1), target).item()
    got = next(m.value for m in results.measurements if (m.row, m.column) == ("bicubic, half resolution", "PSNR"))
    assert got == pytest.approx(want, abs=1e-4)


def resized(image: Tensor, factor: float) -> Tensor:
    return torch.nn.functional.interpolate(image, scale_factor=factor, mode="bicubic")


def test_squares_of_one_size(autoencoders: list[str], images: Path) -> None:
    results = evaluate_autoencoders(autoencoders, images, size=24)
    assert results.measurements[0].protocol["preprocessing"].endswith("centre square of 24 px")
    assert results.measurements[0].protocol["latent"] == "6 x 6 positions for the first image, 24 x 24 px"
    for size in (8, 20):
        with pytest.raises(ValueError, match=f"Squares of {size} px .* multiples of 8 from 16"):
            evaluate_autoencoders(autoencoders, images, size=size)


def test_mistakes_are_found_before_anything_is_measured(
    autoencoders: list[str], images: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no autoencoder in"):
        evaluate_autoencoders([*autoencoders, str(tmp_path / "nothing")], images)
    with pytest.raises(ValueError, match="others than itself"):
        evaluate_autoencoders(autoencoders[:1] * 2, images)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    with pytest.raises(ValueError, match=r"recipe\.yaml there belongs to a run"):
        evaluate_autoencoders(autoencoders, images, out=tmp_path / "run")
    with pytest.raises(ValueError, match="cannot open image folder"):
        evaluate_autoencoders(autoencoders, tmp_path / "no images")


def test_names_in_the_table_are_no_markup() -> None:
    name = "[bold]photos[/]"
    results = Results(
        run={"name": f"Autoencoders on {name}", "summary": "[/red]"},
        measurements=[Measurement("Autoencoders", name, "PSNR", 30.0, "dB", "higher")],
    )
    text = io.StringIO()
    Console(file=text, width=140).print(table_of(results))
    assert text.getvalue().count(name) == 2
    assert "[/red]" in text.getvalue()
