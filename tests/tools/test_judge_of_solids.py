"""`davae evaluate --images` by the judge of the package: no recipe, no network, no weights to name."""

import json
from pathlib import Path

import pytest
from PIL import Image

from davae.cli import main
from davae.data.solids import SolidsSource

DRAWN, REAL = SolidsSource(18, seed=31), SolidsSource(18, seed=32)


def write(folder: Path, source: SolidsSource) -> None:
    folder.mkdir()
    for number, image in enumerate(source.images(range(len(source)), 128)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:06d}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("solids")
    write(folder / "drawn", DRAWN)
    write(folder / "real", REAL)
    (folder / "prompts.txt").write_text("\n".join(DRAWN.captions))
    return folder


def test_drawn_solids_are_compared_with_rendered_ones_and_with_their_captions(folder: Path, tmp_path: Path) -> None:
    arguments = ["--images", folder / "drawn", "--reference", folder / "real", "--prompts", folder / "prompts.txt"]
    names = "fd-solids,solids-accuracy,solids-fineness"
    assert main(["evaluate", *map(str, arguments), "--metrics", names, "--out", str(tmp_path / "out")]) == 0
    items = json.loads((tmp_path / "out" / "results.json").read_text())["measurements"]
    found = {item["column"]: item for item in items}
    assert list(found) == ["FD-solids-18", "Shape accuracy", "Material accuracy", "Colour accuracy", "Fineness"]
    assert found["Shape accuracy"]["value"] > 0.9
    for item in items:
        low, high = item["protocol"]["interval_95"]
        assert low <= item["value"] <= high
    page = (tmp_path / "out" / "report.html").read_text()
    low, high = found["Fineness"]["protocol"]["interval_95"]
    assert f"<small>{low:.3f} to {high:.3f}</small>" in page


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--metrics", "solids-accuracy"], "has no caption in"),
        (["--metrics", "fd-solids"], "got no reference. Give --reference"),
        (["--metrics", "solids-fineness", "--prompts", "PROMPTS"], "no metric of solids-fineness looks at captions"),
        (["--metrics", "solids-fineness", "--weights", "solids=/nowhere"], "There is no judge of solids in /nowhere"),
    ],
)
def test_what_is_missing_is_said(
    folder: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder / "prompts.txt") if option == "PROMPTS" else option for option in options]
    assert main(["evaluate", "--images", str(folder / "drawn"), *given]) == 1
    assert sentence in capsys.readouterr().err
