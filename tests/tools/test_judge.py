"""`davae evaluate --images` and `davae statistics` end to end, with an Inception of synthetic weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from davae.cli import main
from tiny_inception import inception_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and two sets of images: drawn/ and real/."""
    folder = tmp_path_factory.mktemp("judged")
    save_file(inception_weights(), folder / "inception.safetensors")
    draw = np.random.default_rng(0)
    for name, count in (("drawn", 5), ("real", 4)):
        (folder / name).mkdir()
        for number in range(count):
            colours = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            colours.resize((32, 24), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")
    return folder


def evaluate(folder: Path, *options: str, images: str = "drawn", reference: str = "real") -> int:
    weights = ("--weights", f"inception={folder / 'inception.safetensors'}")
    return main(
        ["evaluate", "--images", str(folder / images), "--reference", str(folder / reference), *weights, *options]
    )


def values(out: Path) -> dict[str, float]:
    results = json.loads((out / "results.json").read_text())
    return {item["column"]: item["value"] for item in results["measurements"]}


def test_images_are_judged_against_images_and_against_their_statistics(folder: Path, tmp_path: Path, capsys) -> None:
    assert evaluate(folder, "--metrics", "fid,is,kid,precision-recall", "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert "FID-5" in said.out and "FID-5 is biased upwards" in said.err
    assert (tmp_path / "out" / "report.html").is_file()
    found = values(tmp_path / "out")
    assert list(found) == ["FID-5", "IS", "KID", "Precision", "Recall"]
    file = tmp_path / "real.npz"
    weights = f"inception={folder / 'inception.safetensors'}"
    making = ["statistics", str(folder / "real"), "--out", str(file), "--weights", weights]
    assert main([*making, "--metrics", "fid,kid"]) == 0
    assert evaluate(folder, "--metrics", "kid", "--out", str(tmp_path / "by-file"), reference=str(file)) == 0
    assert values(tmp_path / "by-file") == pytest.approx({"KID": found["KID"]}, rel=1e-9)
    assert evaluate(folder, "--metrics", "fid", "--protocol", "clean", reference=str(file)) == 1
    refused = capsys.readouterr().err
    assert "its preprocessing is 'adm: " in refused and "here it is 'clean: " in refused


def test_what_is_no_image_is_counted_and_named_and_strict_refuses_it(folder: Path, tmp_path: Path, capsys) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for number in range(3):
        (drawn / f"{number}.png").write_bytes((folder / "drawn" / f"{number}.png").read_bytes())
    (drawn / "3.png").write_bytes(b"cut off")
    out = tmp_path / "out"
    assert evaluate(folder, "--metrics", "fid", "--strict", "--out", str(out), images=str(drawn)) == 1
    assert "1 (3.png: not an image" in capsys.readouterr().err
    assert not out.exists()
    assert evaluate(folder, "--metrics", "kid", "--out", str(out), images=str(drawn)) == 0
    assert "left out: " in capsys.readouterr().err
    assert json.loads((out / "results.json").read_text())["measurements"][0]["protocol"]["images"]["left_out"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metrics", "fdi"], "Unknown metric 'fdi'. Did you mean 'fid'?"),
        (["--metrics", "fid", "--count", "50000"], "has to hold 50,000 images; got 5"),
        (["--metrics", "is"], "has no effect: no metric of is compares"),
        (["--metrics", "fid", "--weights", "dinov2=x"], "Weights for 'dinov2' have no effect"),
        (["--metrics", "fid", "--weights", "x"], "--weights takes SPACE=PATH; got 'x'"),
        (["--metrics", "fid", "--batch-size", "0"], "A batch has at least one image"),
        (["--metrics", "fid", "--weights", "inception=/nowhere.pth"], "no file at /nowhere.pth"),
        (["--autoencoders", "x"], "'davae evaluate --help' shows all three"),
        (["--metrics", "fdd"], "Weights for 'inception' have no effect"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_and_nothing_is_written(
    folder: Path, tmp_path: Path, options: list[str], sentence: str, capsys
) -> None:
    assert evaluate(folder, *options, "--out", str(tmp_path / "out")) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_with_another_checksum_are_refused(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "w.pth").write_bytes(b"another file")
    assert evaluate(folder, "--metrics", "fid", "--weights", f"inception={tmp_path / 'w.pth'}") == 1
    assert "got sha256" in capsys.readouterr().err


def test_a_statistics_file_has_a_name_that_says_so(folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["statistics", str(folder / "real"), "--out", str(tmp_path / "real.npy")]) == 1
    assert "ends in .npz" in capsys.readouterr().err
