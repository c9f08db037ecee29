"""`davae run` on a folder of images as people have them: some damaged, some odd, and the run says which."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from davae.data.latent_cache import LatentCache
from davae.data.solids import SolidsSource
from tiny_run import run

CLASSES = ("bee", "cat")


def write_folder(folder: Path, count: int = 40) -> Path:
    """Class sub-folders of PNGs, and among them a truncated, a grey, a palette, a small and a text file."""
    source = SolidsSource(count, seed=11)
    for index, image in enumerate(source.images(range(count), 40).permute(0, 2, 3, 1).numpy()):
        path = folder / CLASSES[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    whole = (folder / "bee" / "000.png").read_bytes()
    (folder / "bee" / "cut off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cat" / "no image.jpg").write_text("not an image")
    Image.fromarray(np.zeros((20, 50, 3), np.uint8)).save(folder / "cat" / "small.png")
    Image.open(folder / "cat" / "001.png").convert("L").save(folder / "cat" / "grey.png")
    palette = Image.open(folder / "bee" / "002.png").convert("P", colors=16)
    palette.save(folder / "bee" / "palette.png", transparency=3)
    (folder / "notes.txt").write_text("no image, and none of the data's business")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def folder_recipe(recipe: Path, photos: Path) -> Path:
    values = yaml.safe_load(recipe.read_text()) | {"name": "photos"}
    values["data"] = {"path": str(photos), "test_count": 8, "workers": 0}
    path = photos.parent / "photos.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def outcome(folder_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("folder-runs")
    status, said = run(folder_recipe, runs)
    assert status == 0, said
    return runs / "photos", said


BAD = {"bee/cut off.png": "unreadable", "cat/no image.jpg": "not an image", "cat/small.png": "too small: 50x20"}


def test_unusable_images_are_counted_and_listed_by_name(outcome: tuple[Path, str]) -> None:
    folder, said = outcome
    rows = json.loads((folder / "run.json").read_text())["skipped_images"]
    assert [name for name, _ in rows] == sorted(BAD)
    for name, reason in rows:
        assert BAD[name] in reason
        assert f"skipped {name}: " in said
    assert "3 files could not be used; the list is in run.json" in said


def test_odd_images_are_trained_on_and_bad_ones_are_not(outcome: tuple[Path, str]) -> None:
    manifest = LatentCache(outcome[0] / "latents").manifest
    assert len(manifest.ids) == 42 - 8  # 40, grey and palette, without 8 for testing
    assert not set(manifest.ids) & set(BAD)
    assert dict(manifest.skipped).keys() == BAD.keys()


def test_the_run_is_judged_on_images_that_it_never_saw(outcome: tuple[Path, str]) -> None:
    results = json.loads((outcome[0] / "results.json").read_text())
    counts = {m["group"].split(":")[0]: m["protocol"] for m in results["measurements"]}
    assert counts["Reconstruction"]["images"] == 8
    assert counts["Generation"]["real"] == 8
    assert (outcome[0] / "report.html").stat().st_size > 10_000


def test_an_image_more_is_another_data_set(folder_recipe: Path, photos: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos")
    settings = ["--set", f"data.path={folder}", "--set=cache=null", "--set=finetune=null", "--set=sample=null"]
    assert run(folder_recipe, tmp_path, *settings)[0] == 0
    Image.new("RGB", (40, 40)).save(folder / "bee" / "new.png")
    (folder / "cat" / "small.png").unlink()
    status, said = run(folder_recipe, tmp_path, *settings)
    assert (status, "other settings: data: " in said) == (1, True), said
    assert run(folder_recipe, tmp_path, *settings, "--overwrite")[0] == 0
    rows = json.loads((tmp_path / "photos" / "run.json").read_text())["skipped_images"]
    assert [name for name, _ in rows] == sorted(set(BAD) - {"cat/small.png"})


def test_the_list_is_gone_when_all_images_are_usable(folder_recipe: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", count=12)
    settings = ["--set", f"data.path={folder}", "--set=cache=null", "--set=finetune=null", "--set=sample=null"]
    settings += ["--set=data.test_count=4"]
    assert run(folder_recipe, tmp_path, *settings)[0] == 0
    for name in BAD:
        (folder / name).unlink()
    status, said = run(folder_recipe, tmp_path, *settings, "--overwrite")
    assert (status, "skipped bee" in said) == (0, False), said
    assert json.loads((tmp_path / "photos" / "run.json").read_text())["skipped_images"] == []


def test_more_classes_than_the_pair_knows_are_refused_before_training(folder_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for index in range(38):
        path = folder / f"class {index % 19:02d}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (index, 0, 0)).save(path)
    status, said = run(folder_recipe, tmp_path, "--set", f"data.path={folder}")
    assert (status, "more classes than the pair; got 19, allowed 18" in said) == (1, True), said
    assert not (tmp_path / "photos" / "stats.jsonl").exists()


def plain(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (side, side)).save(folder / f"{index}.png")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "cannot open image folder {}: got nothing there; .*correct the path"),
        (lambda folder: folder.mkdir(), "no image in {}: got 0 other files; .*correct the path"),
        (
            lambda folder: folder.write_text("text"),
            "cannot open image folder {}: got a file there; .*correct the path",
        ),
        (lambda folder: plain(folder, 2, side=8), r"no usable image in {}: .*0\.png: too small: 8x8.*replace them"),
        (lambda folder: plain(folder, 5, side=40), r"hold out 8 test images of a set of 5\. Lower data\.test_count"),
    ],
    ids=["missing", "empty", "a file", "all bad", "too few"],
)
@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_a_folder_that_cannot_be_used_is_explained(
    folder_recipe: Path, tmp_path: Path, make: Callable[[Path], None], expected: str, kind: str
) -> None:
    folder = tmp_path / "images"
    make(folder)
    status, said = run(folder_recipe, tmp_path, f"--set=data.path={folder}", f"--set=data.kind={kind}")
    assert status == 1
    assert re.search(expected.format(re.escape(str(folder))), said), said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) <= 5, said
