"""Folders as people have them: other suffixes, other annotations, strange names, what is no file, parts."""

import json
import os
import shutil
import tarfile
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from davae.data import decode
from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.hold_out import HoldOut
from davae.data.prompt_list import read_prompts
from davae.data.splits import open_train_test

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, form: str | None = None, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (value, 0, 0)).save(path, form)
    return path


def sizes(path: Path, test: HoldOut | int = 1) -> tuple[int, int]:
    train, held_out = open_train_test("auto", str(path), 16, test, 1, 0)
    return len(train), len(held_out)


# Suffixes and kinds


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jfif", "JPEG"),
        ("a.JPE", "JPEG"),
        ("a.gif", "GIF"),
        ("a.avif", "AVIF"),
        ("a.jp2", "JPEG2000"),
        ("a.ppm", "PPM"),
        ("a.dib", "DIB"),
        ("a.jpg", "PNG"),
        ("a", "JPEG"),
    ],
)
def test_what_pillow_can_open_is_an_image(tmp_path: Path, name: str, form: str) -> None:
    write(tmp_path / name, form)
    (tmp_path / "LICENSE").write_text("no image")
    source = FolderSource(tmp_path, 16)
    assert (source.ids, source.skipped) == ([name], ())
    assert source.images([0], 16).shape == (1, 3, 16, 16)


def test_no_format_that_starts_programs_or_takes_noise_is_opened() -> None:
    assert not {".eps", ".ps", ".tga", ".wmf"}.intersection(decode.IMAGE_SUFFIXES)


def test_files_that_look_like_data_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    for name in ("b.heic", "c.ZIP", "d/e.parquet", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    skipped = dict(FolderSource(tmp_path, 16).skipped)
    assert set(skipped) == {"b.heic", "c.ZIP", "d/e.parquet"}
    assert "convert it" in skipped["b.heic"]
    assert "unpack it" in skipped["c.ZIP"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"4 other files, \.heic \.parquet \.zip among them"):
        FolderSource(tmp_path, 16)


# Annotations


def test_a_table_of_metadata(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a, b.png")
    write(tmp_path / "c.png")
    table = '\ufefffile_name,text,label\r\n"x/a, b.png","two\nlines, and ""quotes""",1\r\nc.png,,0\r\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode())
    source = FolderSource(tmp_path, 16)
    assert list(source.ids) == ["c.png", "x/a, b.png"]
    assert list(source.labels) == [0, 1]
    assert "quotes" in str(source.captions[1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,text\na.png,x\n", "line 2: got .* allowed is an entry with a file_name"),
        ("file_name,text\na.png,x,y\n", "line 2: got 3 cells; allowed are 2"),
        ('file_name,text\na.png,"x\n', "line 2: got .*end of data"),
        ("file_name,label\na.png,cat\n", "line 2: got label 'cat'"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, message: str) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        FolderSource(tmp_path, 16)


def test_two_kinds_of_metadata_in_one_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name\na.png\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(DataError, match=r"metadata\.csv and metadata\.jsonl"):
        FolderSource(tmp_path, 16)


def test_metadata_speaks_for_its_own_folder_alone(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/unlisted.png", "out/b.png"):
        write(tmp_path / name)
    (tmp_path / "in" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n')
    (tmp_path / "out" / "b.txt").write_text("two")
    source = FolderSource(tmp_path, 16)
    assert list(source.ids) == ["in/a.png", "out/b.png"]
    assert source.skipped == (("in/unlisted.png", "not listed in in/metadata.jsonl"),)
    assert source.class_names == ()


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("a.txt", "one\n", "one"),
        ("a.caption", "one", "one"),
        ("a.json", json.dumps({"prompt": "one", "width": 20}), "one"),
        ("a.TXT", "one", None),
    ],
)
def test_side_cars(tmp_path: Path, name: str, content: str, caption: str | None) -> None:
    write(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    captions = str(FolderSource(tmp_path, 16).captions[0])
    assert ("one" in captions) == (caption is not None)


def test_names_match_whatever_their_normalisation(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    write(tmp_path / f"{apart}.png")
    write(tmp_path / f"{composed}2.png")
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": name}) + "\n" for name in (f"{composed}.png", f"{apart}2.png"))
    )
    source = FolderSource(tmp_path, 16)
    assert (set(source.ids), source.skipped) == ({f"{apart}.png", f"{composed}2.png"}, ())
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / f"{composed}.txt").write_text("a cup")
    assert sum("a cup" in str(captions) for captions in FolderSource(tmp_path, 16).captions) == 1


def test_half_a_surrogate_pair_in_a_caption_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl line 1: got half of a surrogate pair"):
        FolderSource(tmp_path, 16)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "\\ud83d\\ude00"}\n')
    assert "\U0001f600" in str(FolderSource(tmp_path, 16).captions[0])


# Names and files that are none


def test_names_that_are_no_text_are_images_with_names_that_are(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    write(tmp_path / "tea" / "b.png")
    shutil.copy(tmp_path / "tea" / "b.png", folder / os.fsdecode(b"\xff.png"))
    source = FolderSource(tmp_path, 16)
    assert list(source.ids) == [r"caf\xe9/\xff.png", "tea/b.png"]
    assert source.class_names == (r"caf\xe9", "tea")
    json.dumps([*source.ids, *source.class_names], ensure_ascii=False).encode()
    assert source.images([0, 1], 16).shape == (2, 3, 16, 16)


def test_two_files_of_one_name_as_text(tmp_path: Path) -> None:
    write(tmp_path / "x" / r"caf\xe9.png")
    shutil.copy(tmp_path / "x" / r"caf\xe9.png", tmp_path / "x" / os.fsdecode(b"caf\xe9.png"))
    source = FolderSource(tmp_path, 16)
    assert len(source) == 1
    assert "rename" in source.skipped[0][1]


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "folder.jpg").mkdir()
    skipped = dict(FolderSource(tmp_path, 16).skipped)
    assert skipped["pipe.jpg"] == "a pipe and no file"
    assert set(skipped) == {"pipe.jpg", "self.jpg", "gone.jpg"}


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "closed" / "b.png")
    scandir = os.scandir

    def guarded(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert FolderSource(tmp_path, 16).skipped == (("closed", "unreadable: Permission denied"),)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_LARGE", 100)
    for index in range(12):
        write(tmp_path / f"{index}.png", value=index)
    inside, most, lock = [0], [0], threading.Lock()
    to_rgb = decode._to_rgb

    def counted(image: Image.Image) -> Image.Image:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        result = to_rgb(image)
        with lock:
            inside[0] -= 1
        return result

    monkeypatch.setattr(decode, "_to_rgb", counted)
    FolderSource(tmp_path, 16).images(range(12), 16)
    assert most == [1]


# Parts


@pytest.mark.parametrize(
    ("train", "test"), [("train", "val"), ("Train", "TEST"), ("training", "validation"), ("train", "dev")]
)
def test_standard_folders_are_parts_and_no_classes(tmp_path: Path, train: str, test: str) -> None:
    for name in (f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png", f"{test}/dog/4.png"):
        write(tmp_path / name)
    parts = open_train_test("auto", str(tmp_path), 16, 8, 1, 0)
    assert [part.class_names for part in parts] == [("cat", "dog")] * 2
    assert [len(part) for part in parts] == [2, 2]


def test_a_third_part_is_named(tmp_path: Path) -> None:
    for index, name in enumerate(("train", "val", "test")):
        write(tmp_path / name / f"{index}.png")
    train, test = open_train_test("auto", str(tmp_path), 16, 8, 1, 0)
    assert list(test.ids) == ["1.png"]
    assert train.skipped[-1][0] == "test"


def test_a_training_part_alone_is_a_folder_like_others(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / "train" / f"{index}.png", value=index)
    assert sizes(tmp_path) == (3, 1)


def test_a_stray_archive_among_images_is_named(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path / f"{index}.png", value=index)
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        tar.add(tmp_path / "0.png", "0.png")
    train, _ = open_train_test("auto", str(tmp_path), 16, 1, 1, 0)
    assert len(train) == 2
    assert "backup.tar" in dict(train.skipped)


@pytest.mark.parametrize("folder", ["photos [1024]", "photos {a,b}", "{0..1}", "what?", "best*of"])
@pytest.mark.parametrize(("train", "test"), [("train-0.tar", "val-0.tar"), ("Train_00.tar", "validation_00.tar")])
def test_parts_in_shards_in_folders_that_look_like_patterns(
    tmp_path: Path, folder: str, train: str, test: str
) -> None:
    image = write(tmp_path / "image.png")
    for decoy in ("photos 1", folder):
        (tmp_path / decoy).mkdir()
        for name, count in ((train, 3 if decoy == folder else 7), (test, 2)):
            with tarfile.open(tmp_path / decoy / name, "w") as tar:
                for index in range(count):
                    tar.add(image, f"{index}.png")
    assert sizes(tmp_path / folder, 8) == (3, 2)


def test_small_sets_hold_out_about_a_tenth_unless_told_otherwise(tmp_path: Path) -> None:
    for index in range(30):
        write(tmp_path / f"{index}.png", value=index)
    assert sizes(tmp_path, HoldOut()) == (26, 4)
    assert sizes(tmp_path, HoldOut(count=5)) == (25, 5)
    with pytest.raises(DataError, match="leave it out"):
        sizes(tmp_path, HoldOut(count=30))
    assert HoldOut().count_of(["one"]) == 1
    assert HoldOut().count_of(list(map(str, range(10_000)))) == 512
    names = list(map(str, range(1000)))
    assert HoldOut().choose(names[:500]) <= HoldOut().choose(names)  # and no test image of a trained one as it grows
    assert not (HoldOut().choose(names) - HoldOut().choose(names[:500])).intersection(names[:500])


# Files that are damaged


@FEW
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_images_are_refused_by_name_or_read(tmp_path: Path, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"]))
    folder = Path(tmp_path) / f"set-{form}"
    write(folder / "whole.png")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "x.jpg", form)
    content = bytearray((folder / "x.jpg").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] ^= data.draw(st.integers(1, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    (folder / "x.jpg").write_bytes(content)
    source = FolderSource(folder, 16)
    assert set(source.ids) | {name for name, _ in source.skipped} == {"whole.png", "x.jpg"}
    source.images(range(len(source)), 16)


@FEW
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode), name=st.sampled_from(["jsonl", "csv"]))
def test_metadata_of_any_contents_is_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    write(tmp_path / "a.png")
    for other in ("jsonl", "csv"):
        (tmp_path / f"metadata.{other}").unlink(missing_ok=True)
    (tmp_path / f"metadata.{name}").write_bytes(content)
    try:
        FolderSource(tmp_path, 16)
    except DataError as error:
        assert "a.png" in str(error) or "metadata" in str(error)


@FEW
@given(
    content=st.binary(max_size=80) | st.text(max_size=80).map(str.encode),
    suffix=st.sampled_from(["txt", "jsonl", "json", "csv", "TSV"]),
)
def test_prompts_of_any_contents_are_read_or_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"prompts.{suffix}"
    path.write_bytes(content)
    try:
        prompts = read_prompts(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert all(prompts)


def test_an_image_has_its_captions_and_the_first_of_them(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png")
    rows = [{"file_name": "a.png", "captions": ["one", " ", "two"]}, {"file_name": "b.png", "text": "three"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"file_name": "c.png"}])))
    source = FolderSource(tmp_path, 16)
    assert list(source.all_captions) == [("one", "two"), ("three",), ()]
    assert list(source.captions) == ["one", "three", ""]
