"""`davae evaluate --images` and `davae statistics` end to end, with an Inception of synthetic weights."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from davae.cli import main
from davae.evaluate.distances.frechet import frechet, moments_of
from davae.evaluate.results import Results
from davae.evaluate.spaces.catalogue import SPACES
from davae.evaluate.spaces.space import FeatureSpace, Loading
from davae.tools.judge import table_of
from tiny_inception import inception_weights
from tiny_space import tiny_space


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
    assert "5 images against 4; FID Inception 2015-12-05" in " ".join(said.out.split())
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
        (["--protocol", "adm,claen"], "Unknown protocol 'claen'. Did you mean 'clean'?"),
        (["--size", "24"], "--size belongs to --autoencoders"),
        (["--upscale", "lanczos"], "--upscale SPEC, which needs it"),
        (["--upscale", "lancos", "--size", "24"], "Unknown upscaler 'lancos'"),
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


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In the place of Inception a space that costs nothing; the batches that it computes."""
    computed: list[int] = []

    def load(loading: Loading) -> FeatureSpace:
        space = tiny_space(preprocessing=loading.protocol)
        return replace(space, compute=lambda inputs: computed.append(len(inputs)) or space.compute(inputs))

    monkeypatch.setitem(SPACES, "inception", load)
    return computed


def write_colours(folder: Path, names: list[str], seed: int = 0, side: int = 24) -> Path:
    draw = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        colours.resize((side, side), Image.Resampling.BICUBIC).save(folder / name)
    return folder


CATEGORIES = {
    key: {"prompt": f"a {key}", "category": category}
    for key, category in {"a1": "food", "b2": "animals", "c3": "food", "d4": "animals"}.items()
}


def test_mjhq_is_measured_by_category_and_over_all_by_both_protocols(tiny: list[int], tmp_path: Path) -> None:
    (tmp_path / "meta_data.json").write_text(json.dumps(CATEGORIES))
    real = write_colours(tmp_path / "real", [f"{of['category']}/{key}.jpg" for key, of in CATEGORIES.items()])
    write_colours(tmp_path / "drawn", [f"{number:06d}.png" for number in range(4)], seed=1)
    drawn, options = str(tmp_path / "drawn"), ["--features", str(tmp_path / "features"), "--metrics", "fid,kid"]
    options += ["--categories", str(tmp_path / "meta_data.json"), "--protocol", "clean,pytorch-fid"]
    out = tmp_path / "out"
    assert evaluate(tmp_path, *options, "--out", str(out), images=drawn, reference=str(real)) == 0
    assert sum(tiny) == 2 * (4 + 4)  # once a protocol, not once a category
    items = json.loads((out / "results.json").read_text())["measurements"]
    cells = {(item["group"], item["row"], item["column"]): item["value"] for item in items}
    assert {key[:2] for key in cells} == {
        (f"Images by category, {protocol}", row)
        for protocol in ("pytorch-fid", "clean")
        for row in ("animals", "food", "overall")
    }
    shown = table_of(Results.load(out / "results.json"))
    assert (shown.row_count, len(shown.columns)) == (6, 5)  # a line a row: its name, two counts, two metrics
    table = "Images by category, clean"
    assert [cells[table, row, "images"] for row in ("animals", "food", "overall")] == [2, 2, 4]
    # A row is what its images alone would give.
    for name in ("000000", "000002"):  # of a1 and c3
        (tmp_path / "food").mkdir(exist_ok=True)
        (tmp_path / "food" / f"{name}.png").write_bytes((tmp_path / "drawn" / f"{name}.png").read_bytes())
    alone = ["--metrics", "fid,kid", "--protocol", "clean", "--out", str(tmp_path / "alone")]
    assert evaluate(tmp_path, *alone, images=str(tmp_path / "food"), reference=str(real / "food")) == 0
    found = values(tmp_path / "alone")
    assert cells[table, "food", "FID"] == pytest.approx(found["FID-2"], rel=1e-6)
    assert cells[table, "food", "KID"] == pytest.approx(found["KID"], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"e5": {"prompt": "a", "category": "food"}}, "4 images in .* do not match 5 prompts"),
        (
            {"d4": {"prompt": "a", "category": "art"}},
            "at least 2 images of a category; got 1 drawn and 1 real ones of",
        ),
        ({"d4": None, "e5": {"prompt": "a", "category": "animals"}}, "1 images are of no entry of|are of no entry"),
    ],
)
def test_categories_that_do_not_fit_are_refused(tmp_path: Path, change, sentence: str, capsys) -> None:
    entries = {key: entry for key, entry in {**CATEGORIES, **change}.items() if entry is not None}
    (tmp_path / "meta_data.json").write_text(json.dumps(entries))
    real = write_colours(tmp_path / "real", [f"x/{key}.jpg" for key in CATEGORIES])
    drawn = write_colours(tmp_path / "drawn", [f"{number:06d}.png" for number in range(4)])
    options = ["--categories", str(tmp_path / "meta_data.json"), "--out", str(tmp_path / "out")]
    assert evaluate(tmp_path, *options, images=str(drawn), reference=str(real)) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_images_are_enlarged_before_they_are_judged_and_results_say_by_what(tiny: list[int], tmp_path: Path) -> None:
    small = write_colours(tmp_path / "small", ["0.png", "1.png"], side=12)
    options = ["--upscale", "lanczos", "--size", "24", "--metrics", "fid", "--out", str(tmp_path / "out")]
    real = write_colours(tmp_path / "real", ["0.png", "1.png"], seed=1)
    assert evaluate(tmp_path, *options, images=str(small), reference=str(real)) == 0
    assert sum(tiny) == 4
    assert Image.open(tmp_path / "out" / "enlarged" / "1.png").size == (24, 24)
    [item] = json.loads((tmp_path / "out" / "results.json").read_text())["measurements"]
    about = item["protocol"]["images"]
    assert about["size"] == "24 x 24 px"
    assert (about["enlarged"]["upscaler"]["upscaler"], about["enlarged"]["size"]) == ("lanczos", 24)


def test_features_of_files_are_compared(tmp_path: Path, capsys) -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.normal(size=(40, 6)).astype(np.float32), draw.normal(1, 1, size=(30, 6))
    np.save(tmp_path / "a.npy", ours)
    np.savez(tmp_path / "b.npz", features=theirs, identity="my network, 224 px")
    save_file(
        {"x": torch.from_numpy(ours)}, tmp_path / "a.safetensors", {"extractor": "another network", "format": "pt"}
    )
    command = ["evaluate", "--images", str(tmp_path / "a.npy"), "--reference", str(tmp_path / "b.npz")]
    metrics = ["--metrics", "frechet,kid,mind,precision-recall", "--out", str(tmp_path / "out")]
    assert main([*command, *metrics]) == 0
    found = values(tmp_path / "out")
    assert list(found) == ["Frechet distance-40", "KID", "MIND", "Precision", "Recall"]
    assert found["Frechet distance-40"] == pytest.approx(frechet(moments_of(ours), moments_of(theirs)), rel=1e-6)
    assert "a.npy does not say what made the features" in capsys.readouterr().err
    [item, *_] = json.loads((tmp_path / "out" / "results.json").read_text())["measurements"]
    assert item["protocol"]["extractor"] == "unstated"
    assert item["protocol"]["reference"]["extractor"] == "my network, 224 px"
    command[2] = str(tmp_path / "a.safetensors")
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "says 'my network, 224 px'" in said and "says 'extractor: another network'" in said


@pytest.mark.parametrize(
    ("array", "options", "sentence"),
    [
        (np.zeros((4, 5)), [], "got 5 numbers a vector in .*a.npy and 6 in .*b.npy"),
        (np.array([[0.0] * 6, [0, 0, np.nan, 0, 0, 0]]), [], "a.npy: row 1 is not finite"),
        (np.zeros((4, 6, 1)), [], r"got float64 \[4, 6, 1\]; allowed are numbers \[N, F\]"),
        (np.zeros((4, 6), "U3"), [], "allowed are numbers"),
        (np.array([{}]), [], "allowed is a whole array of numbers"),
        (np.zeros((1, 6)), [], "needs at least 2 vectors; got 1"),
        (np.zeros((4, 6)), ["--metrics", "fid"], "Unknown metric 'fid'.* Allowed: frechet, kid"),
        (np.zeros((4, 6)), ["--protocol", "clean"], "--protocol has no effect"),
        (np.zeros((4, 6)), ["--count", "5"], "has to hold 5 vectors; got 4"),
        (np.zeros((4, 6)), ["--reference", "."], "compare with other features"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(tmp_path: Path, array, options, sentence, capsys) -> None:
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", np.zeros((4, 6)))
    files = ["--images", str(tmp_path / "a.npy"), "--reference", str(tmp_path / "b.npy")]
    assert main(["evaluate", *files, *options, "--out", str(tmp_path / "out")]) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
