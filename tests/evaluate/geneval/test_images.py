"""Folders of images to judge, and what is said of those that are not whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from davae.data.shard_writer import ShardWriter
from davae.evaluate.geneval.detections import judge_all, read_detections
from davae.evaluate.geneval.images import find_images
from davae.evaluate.geneval.prompts import read_prompts

ASKED: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a photo of a red cup"},
]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in ASKED))
    return path


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    for number, entry in enumerate(ASKED):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(f"{json.dumps(entry)}\n")
        for sample in range(2):
            Image.new("RGB", (8, 8), (number, sample, 0)).save(samples / f"{sample:04d}.png")
    return folder


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    folder = tmp_path / "drawn"
    folder.mkdir()
    (folder / "generation.json").write_text(json.dumps({"count": 2, "form": "png", "shards": False}))
    for index in range(4):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index:06d}.png")
        (folder / f"{index:06d}.json").write_text(json.dumps({"prompt": ASKED[index // 2]["prompt"]}))
    return folder


def test_the_official_layout_and_our_own_give_the_same_prompts(official: Path, drawn: Path, metadata: Path) -> None:
    ours, theirs = find_images(drawn, metadata), find_images(official, metadata)
    assert [image.prompt for image in ours] == [image.prompt for image in theirs]
    assert [image.name for image in theirs[:3]] == [
        "00000/samples/0000.png",
        "00000/samples/0001.png",
        "00001/samples/0000.png",
    ]
    assert [image.name for image in ours] == [f"{index:06d}.png" for index in range(4)]


def test_without_a_file_the_prompts_have_to_be_the_published_ones(official: Path, drawn: Path) -> None:
    with pytest.raises(ValueError, match="single_object has 1 prompts of 80; two_object has 0 prompts of 99"):
        find_images(official)
    with pytest.raises(ValueError, match="Name the file that it was drawn from by --prompts FILE"):
        find_images(drawn)


def test_a_kind_that_was_not_drawn_is_refused(official: Path, drawn: Path, metadata: Path) -> None:
    with pytest.raises(ValueError, match="holds no baseline images. Leave out --kind"):
        find_images(official, metadata, "baseline")
    with pytest.raises(ValueError, match=r"000000-baseline\.png is not there; draw the images with --baseline"):
        find_images(drawn, metadata, "baseline")


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "00000")


def _last_folder(folder: Path) -> None:
    shutil.rmtree(folder / "00001")


def _no_metadata(folder: Path) -> None:
    (folder / "00001" / "metadata.jsonl").unlink()


def _broken_metadata(folder: Path) -> None:
    (folder / "00001" / "metadata.jsonl").write_text('{"tag": ')


def _one_image_less(folder: Path) -> None:
    (folder / "00001" / "samples" / "0001.png").unlink()


def _no_image(folder: Path) -> None:
    shutil.rmtree(folder / "00001" / "samples")


def _other_prompt(folder: Path) -> None:
    shutil.copy(folder / "00000" / "metadata.jsonl", folder / "00001" / "metadata.jsonl")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (_no_folder, "lacks 00000 of 2 prompts"),
        (_last_folder, "lacks 00001 of 2 prompts"),
        (_no_metadata, "00001 has no metadata.jsonl"),
        (_broken_metadata, "metadata.jsonl line 1"),
        (_one_image_less, "same number of images: 0000[01] has [12], most have [12]"),
        (_no_image, "samples holds no image"),
        (_other_prompt, "00001 is of the prompt 'a photo of a bench'; prompt 1 of .* is 'a photo of a red cup'"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(official: Path, metadata: Path, break_it: Any, said: str) -> None:
    break_it(official)
    with pytest.raises(ValueError, match=said):
        find_images(official, metadata)


def test_a_drawing_that_is_not_whole_is_refused(drawn: Path, metadata: Path, tmp_path: Path) -> None:
    shutil.copy(drawn / "000000.png", drawn / "000004.png")
    with pytest.raises(ValueError, match="5 images .* do not match 2 prompts"):
        find_images(drawn, metadata)
    (drawn / "000004.png").unlink()
    (drawn / "000002.json").write_text('{"prompt": "a photo of a cup"}')
    with pytest.raises(ValueError, match=r"000002\.png .* is of 'a photo of a cup', not of 'a photo of a red cup'"):
        find_images(drawn, metadata)
    (drawn / "000001.png").unlink()
    with pytest.raises(
        ValueError, match=r"there is no 000001 beside 000000\.png; run the command that drew them again"
    ):
        find_images(drawn, metadata)


def test_shards_are_judged_as_files_are(drawn: Path, metadata: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(drawn, shards, ignore=shutil.ignore_patterns("0*"))
    for start in (0, 3):
        with ShardWriter(shards / f"{start // 3:06d}.tar") as shard:
            for number in range(start, min(start + 3, 4)):
                facts = json.loads((drawn / f"{number:06d}.json").read_text())
                png = (drawn / f"{number:06d}.png").read_bytes()
                shard.write(f"{number:09d}", {"png": png, "txt": facts["prompt"], "json": facts})
    ours, theirs = find_images(shards, metadata), find_images(drawn, metadata)
    assert [(image.prompt, image.read()) for image in ours] == [(image.prompt, image.read()) for image in theirs]
    assert [image.name for image in ours] == [
        *("000000/000000000", "000000/000000001", "000000/000000002", "000001/000000003"),
    ]
    (shards / "000001.tar").unlink()
    with pytest.raises(ValueError, match="3 images .* do not match 2 prompts"):
        find_images(shards, metadata)


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path, metadata: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_images(tmp_path / "nowhere", metadata)
    with pytest.raises(ValueError, match="holds no images of GenEval"):
        find_images(tmp_path, metadata)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tag": "count"}, "tag is 'count'; allowed are single_object"),
        ({"prompt": " "}, "prompt is ' '"),
        ({"include": []}, "asks for nothing"),
        ({"include": {"class": "cup"}}, "allowed is a list"),
        ({"include": ["cup"]}, "allowed is an object with class and count"),
        ({"include": [{"class": "computer mice", "count": 1}]}, "Did you mean 'computer mouse'"),
        ({"include": [{"class": "cup", "count": 1.5}]}, "count is 1.5"),
        ({"include": [{"class": "cup", "count": 1, "color": "teal"}]}, "no colour 'teal'"),
        ({"include": [{"class": "cup", "count": 1, "position": ["above", 0]}]}, "number of an earlier object"),
        ({"exclude": [{"class": "cup", "count": True}]}, "exclude 0: count is True"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_by_its_number(metadata: Path, change: dict[str, Any], said: str) -> None:
    metadata.write_text(f"{json.dumps(ASKED[0])}\n{json.dumps({**ASKED[1], **change})}\n")
    with pytest.raises(ValueError, match=f"line 2.*{said}"):
        read_prompts(metadata)


HEAD = '{"format": 1, "judge": {"name": "a person"}}'


def _line(image: str, **change: Any) -> str:
    seen = {"class": "cup", "box": [0, 0, 5, 5], "score": 0.9, "color": "red", **change}
    return json.dumps({"image": image, "objects": [seen]})


def _write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_detections_of_a_file_decide(official: Path, metadata: Path, tmp_path: Path) -> None:
    images = find_images(official, metadata)
    lines = [
        _line(images[0].name, **{"class": "bench"}),
        _line(images[1].name),
        _line(images[2].name),
        _line(images[3].name, color="blue"),
    ]
    detections = read_detections(_write(tmp_path / "seen.jsonl", HEAD, *lines))
    assert detections.judge == {"name": "a person"}
    verdicts = judge_all(images, detections.images)
    assert [verdict.reasons for verdict in verdicts] == [
        (),
        ("expected bench>=1, found 0",),
        (),
        ("expected red cup>=1, found 0 red; and 1 blue",),
    ]


def test_detections_that_do_not_fit_the_images_are_refused(official: Path, metadata: Path, tmp_path: Path) -> None:
    images = find_images(official, metadata)
    lines = [_line(image.name, color=None) for image in images]
    path = tmp_path / "seen.jsonl"
    with pytest.raises(
        ValueError, match=r"Detections of 1 of 4 images are missing, 00001/samples/0001\.png the first"
    ):
        judge_all(images, read_detections(_write(path, HEAD, *lines[:3])).images)
    with pytest.raises(ValueError, match=r"00001/samples/0000\.png: the prompt asks for the colour of a cup"):
        judge_all(images, read_detections(_write(path, HEAD, *lines)).images)
    other = json.dumps({**json.loads(lines[0]), "content": "0" * 32})
    with pytest.raises(ValueError, match="its contents changed"):
        judge_all(images, read_detections(_write(path, HEAD, other, *lines[1:])).images)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "is empty"),
        ([_line("a.png")], "no head of a file of detections"),
        (['{"format": 2, "judge": {}}'], "no head of a file of detections"),
        ([HEAD, '{"image": "a.png"'], "line 2"),
        ([HEAD, '{"image": "a.png", "objects": {}}'], "line 2 is no image"),
        ([HEAD, _line("a.png"), _line("a.png")], r"line 3: a\.png was there before"),
        ([HEAD, _line("a.png", **{"class": "mouse"})], "no class 'mouse'. Did you mean 'computer mouse'"),
        ([HEAD, _line("a.png", color="teal")], "object 0: GenEval has no colour 'teal'"),
        ([HEAD, _line("a.png", box=[0, 1, 2])], "box is"),
        ([HEAD, _line("a.png", box=[0, 1, 2, float("nan")])], "box is"),
        ([HEAD, _line("a.png", score=97)], "score is 97; allowed are numbers from 0 to 1"),
    ],
)
def test_a_broken_file_of_detections_is_refused_by_its_line(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_detections(_write(tmp_path / "seen.jsonl", *lines))
