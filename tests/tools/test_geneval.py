"""`davae evaluate --geneval` and the CLIP score through the command line, with tiny judges."""

import json
import re
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davae.cli import main
from davae.evaluate.geneval.detections import read_detections
from davae.evaluate.geneval.detector import DetectorJudge
from davae.evaluate.results import Results
from davae.models.mask2former import Mask2Former
from davae.tools.clip_score import score_captions
from davae.tools.geneval import judge_geneval
from tiny_judges import build_tiny_clip, build_tiny_detector

ASKED: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cup", "count": 1}],
        "exclude": [{"class": "cup", "count": 2}],
        "prompt": "a photo of <one> cup",
    },
]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in ASKED))
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """What `davae generate --prompts evaluation_metadata.jsonl --no-shards --count 2` leaves."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / "generation.json").write_text(json.dumps({"count": 2, "form": "png", "shards": False}))
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
        (folder / f"{index:06d}.json").write_text(json.dumps({"prompt": ASKED[index // 2]["prompt"]}))
    return folder


@pytest.fixture
def detections(tmp_path: Path) -> Path:
    """Of a judge who sees a bench in the first image, and two cups in the third and one in the fourth."""
    seen = [["bench"], [], ["cup", "cup"], ["cup"]]
    lines: list[dict[str, Any]] = [{"format": 1, "judge": {"name": "a person"}}]
    for index, names in enumerate(seen):
        objects = [{"class": name, "box": [i, 0, i + 9, 9], "score": 0.95} for i, name in enumerate(names)]
        lines.append({"image": f"{index:06d}.png", "objects": objects})
    path = tmp_path / "seen.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def _scores(results: Results) -> dict[str, float]:
    return {item.row: item.value for item in results.measurements if item.column == "score"}


def test_detections_of_others_are_judged_from_the_command_line(
    drawn: Path, metadata: Path, detections: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "judged"
    arguments = ["--geneval", drawn, "--prompts", metadata, "--detections", detections, "--out", out]
    assert main(["evaluate", *map(str, arguments)]) == 0
    said = capsys.readouterr()
    assert re.search(r"overall\W+0\.500\W+0\.\d+ to [01]\.\d+\W+4 ", said.out)
    results = Results.load(out / "results.json")
    assert _scores(results) == {"overall": 0.5, "single object": 0.5, "Count": 0.5}
    protocol = results.measurements[0].protocol
    assert protocol["judge"] == {"name": "a person", "detections": str(detections)}
    assert protocol["rules"]["counting_score"] == 0.9
    assert "not the official set" in results.run["summary"]
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert [verdict["correct"] for verdict in verdicts] == [True, False, False, True]
    assert verdicts[2]["reason"] == "expected cup<2, found 2"


def test_the_page_shows_what_failed_and_why(drawn: Path, metadata: Path, detections: Path, tmp_path: Path) -> None:
    out = tmp_path / "judged"
    judge_geneval(drawn, metadata, detections=detections, out=out)
    page = (out / "report.html").read_text()
    failures = page[page.index("What failed") :]
    assert failures.count("<figure>") == 2
    assert "expected bench&gt;=1, found 0" in failures
    assert "expected cup&lt;2, found 2" in failures
    assert "a photo of &lt;one&gt; cup" in failures
    assert "000001.png" in failures
    assert "000000.png" not in failures


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(Mask2Former, "__init__", partialmethod(Mask2Former.__init__, size=(64, 96)))  # not 800 px
    return {
        "detector": str(build_tiny_detector(tmp_path / "detector")),
        "clip": str(build_tiny_clip(tmp_path / "clip")),
    }


def test_a_judge_that_was_stopped_goes_on_where_it_was(
    drawn: Path, metadata: Path, networks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "judged"
    looked: list[str] = []
    whole = DetectorJudge.look

    def counted(judge: DetectorJudge, image: Any) -> Any:
        if len(looked) == 2:
            raise KeyboardInterrupt
        looked.append(image.name)
        return whole(judge, image)

    monkeypatch.setattr(DetectorJudge, "look", counted)
    with pytest.raises(KeyboardInterrupt):
        judge_geneval(drawn, metadata, **networks, out=out)
    (part,) = out.glob("*.part.jsonl")
    part.write_text(part.read_text() + '{"image": "0000')
    monkeypatch.setattr(DetectorJudge, "look", lambda judge, image: looked.append(image.name) or whole(judge, image))
    judge_geneval(drawn, metadata, **networks, out=out)
    assert looked == [f"{index:06d}.png" for index in range(4)]
    assert sorted(path.name for path in out.iterdir()) == [
        "detections.jsonl",
        "report.html",
        "results.json",
        "verdicts.jsonl",
    ]
    # An image that was drawn anew is looked at again; and the file judges by itself.
    Image.new("RGB", (32, 32)).save(drawn / "000001.png")
    results = judge_geneval(drawn, metadata, **networks, out=out)
    assert looked[4:] == ["000001.png"]
    again = judge_geneval(drawn, metadata, detections=out / "detections.jsonl")
    assert _scores(again) == _scores(results)
    assert len(read_detections(out / "detections.jsonl").judge["detector"]["weights"]) == 32


def test_detections_of_another_judge_are_not_mixed_in(
    drawn: Path, metadata: Path, networks: dict[str, str], detections: Path, tmp_path: Path
) -> None:
    out = tmp_path / "judged"
    out.mkdir()
    (out / "detections.jsonl").write_text(detections.read_text())
    with pytest.raises(ValueError, match="holds what another judge saw"):
        judge_geneval(drawn, metadata, **networks, out=out)
    assert (out / "detections.jsonl").read_text() == detections.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--geneval", "NOWHERE"], "There is no folder NOWHERE"),
        (["--geneval", "DRAWN"], "Name the file that it was drawn from by --prompts FILE"),
        (["--geneval", "DRAWN", "--prompts", "META"], "Give --detector a folder that transformers saved"),
        (["--geneval", "DRAWN", "--prompts", "META", "--detections", "SEEN", "--clip", "x"], "Give one of them"),
        (["--geneval", "DRAWN", "--prompts", "META", "--detections", "NO"], "no file of detections"),
        (["--geneval", "DRAWN", "--images", "DRAWN"], "--geneval FOLDER, or with --images FOLDER"),
        (["--geneval", "DRAWN", "--metrics", "clip-score"], "GenEval is a metric of its own"),
        (["--images", "DRAWN", "--metrics", "clip"], "Unknown metric"),
        (["--images", "DRAWN", "--metrics", "clip-score"], "Give --clip a folder that transformers saved"),
        (["--images", "DRAWN", "--prompts", "META", "--detector", "x"], "are of GenEval"),
        (["--prompts", "META"], "--images FOLDER and --prompts FILE"),
        (["--images", "DRAWN", "--prompts", "META", "--metrics", "is"], "no metric of is looks at captions"),
    ],
)
def test_what_cannot_be_judged_is_refused_in_a_sentence(
    drawn: Path,
    metadata: Path,
    detections: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(drawn))
    places = {"DRAWN": str(drawn), "META": str(metadata), "SEEN": str(detections)}
    assert main(["evaluate", *(places.get(argument, argument) for argument in arguments)]) == 1
    assert said in capsys.readouterr().err


def test_the_clip_score_of_what_was_drawn(
    drawn: Path, metadata: Path, networks: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scored"
    metrics = "clip-score,clip-score-hessel"
    arguments = ["--images", drawn, "--prompts", metadata, "--metrics", metrics, "--clip", networks["clip"]]
    assert main(["evaluate", *map(str, arguments), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert re.search(r"CLIPScore \(Hessel\)\W+[\d.]+\W+[\d.]+ to [\d.]+\W+4 ", said.out)
    items = {
        item.column: item for item in Results.load(out / "results.json").measurements if item.group == "CLIP score"
    }
    assert items["95% from"].value < items["CLIP score"].value < items["95% to"].value
    assert items["CLIP score"].protocol["images"] == 4
    assert (out / "report.html").is_file()


def test_an_image_that_cannot_be_read_is_named(drawn: Path, networks: dict[str, str]) -> None:
    (drawn / "000002.png").write_bytes((drawn / "000002.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"1 images of .* cannot be read, 000002\.png the first"):
        score_captions(drawn, clip=networks["clip"])
