"""Which caption an image file has, and when nothing says so."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from davae.data.captioned_images import captioned_images
from davae.data.errors import DataError
from davae.data.mjhq import read_mjhq
from davae.data.shard_writer import ShardWriter

META = {"b7": {"prompt": "a fox", "category": "animals"}, "a3": {"prompt": "a soup", "category": "food"}}


def _images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def _drawn(folder: Path, captions: list[str]) -> Path:
    _images(folder, *(f"{index:06d}.png" for index in range(len(captions))))
    _images(folder, "grid.png", "000000-baseline.png")
    (folder / "generation.json").write_text("{}")
    for index, caption in enumerate(captions):
        (folder / f"{index:06d}.json").write_text(json.dumps({"prompt": caption}))
    return folder


def _file(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_generate_drew_has_its_captions_beside_it(tmp_path: Path) -> None:
    images = captioned_images(_drawn(tmp_path / "drawn", ["a fox", "a soup"]))
    assert [(image.name, image.caption) for image in images] == [("000000.png", "a fox"), ("000001.png", "a soup")]


def test_what_stands_beside_an_image_takes_its_place(tmp_path: Path) -> None:
    folder = _drawn(tmp_path / "drawn", ["a fox"])
    (image,) = captioned_images(folder, kind="baseline")
    assert (image.name, image.caption) == ("000000-baseline.png", "a fox")
    assert image.read() == (folder / "000000-baseline.png").read_bytes()
    with pytest.raises(DataError, match=r"000000-preview\.png is not there; draw the images with --preview"):
        captioned_images(folder, kind="preview")


def test_metadata_names_images_of_any_name(tmp_path: Path) -> None:
    folder = _images(tmp_path / "x", "b.png", "a/c.jpg")
    _file(
        folder, "metadata.jsonl", '{"file_name": "b.png", "text": "a fox"}\n{"file_name": "a/c.jpg", "text": "soup"}'
    )
    assert [(image.name, image.caption) for image in captioned_images(folder)] == [
        ("a/c.jpg", "soup"),
        ("b.png", "a fox"),
    ]


def test_prompts_are_of_numbered_images_in_order_as_many_of_each(tmp_path: Path) -> None:
    prompts = _file(tmp_path, "prompts.txt", "a fox\na soup\n")
    folder = _images(tmp_path / "x", "2.png", "10.png", "1.png", *(f"{number}.png" for number in range(3, 10)))
    images = captioned_images(folder, prompts)
    assert [image.name for image in images if image.caption == "a fox"] == [f"{number}.png" for number in range(1, 6)]


def test_the_metadata_of_mjhq_names_images_by_id_and_keeps_categories(tmp_path: Path) -> None:
    meta = _file(tmp_path, "meta_data.json", META)
    real = captioned_images(_images(tmp_path / "real", "animals/b7.jpg", "food/a3.jpg"), meta)
    assert [(i.name, i.caption, i.category) for i in real] == [
        ("animals/b7.jpg", "a fox", "animals"),
        ("food/a3.jpg", "a soup", "food"),
    ]
    drawn = captioned_images(_drawn(tmp_path / "drawn", ["a fox", "a fox", "a soup", "a soup"]), meta)
    assert [(i.name, i.category) for i in drawn[1:3]] == [("000001.png", "animals"), ("000002.png", "food")]


def _shards(folder: Path, captions: list[str]) -> Path:
    """What `davae generate` writes with --shards and --baseline, two images a shard."""
    folder.mkdir()
    (folder / "generation.json").write_text('{"shard_size": 2}')
    png = _images(folder.parent / "one", "x.png") / "x.png"
    for start in range(0, len(captions), 2):
        with ShardWriter(folder / f"{start // 2:06d}.tar") as shard:
            for number, caption in enumerate(captions[start : start + 2], start):
                content = {"png": png.read_bytes(), "baseline.png": b"P6 1 1 255 " + bytes([number] * 3)}
                shard.write(f"{number:09d}", {**content, "txt": caption, "json": {"prompt": caption}})
    return folder


def test_shards_say_what_their_images_are_of(tmp_path: Path) -> None:
    shards = _shards(tmp_path / "drawn", ["a fox", "a fox", "a soup", "a soup"])
    meta = _file(tmp_path, "meta_data.json", META)
    for prompts in (None, meta):
        found = captioned_images(shards, prompts)
        assert [(i.name, i.caption) for i in found[1:3]] == [
            ("000000/000000001", "a fox"),
            ("000001/000000002", "a soup"),
        ]
        assert found[0].read().startswith(b"\x89PNG")
    assert [image.category for image in found] == ["animals", "animals", "food", "food"]
    beside = captioned_images(shards, meta, "baseline")
    assert [(i.read()[-1], i.caption) for i in beside] == list(enumerate(["a fox", "a fox", "a soup", "a soup"]))
    with pytest.raises(DataError, match="image 000000/000000000 .* is of 'a fox', not of 'a cat'"):
        captioned_images(shards, _file(tmp_path, "prompts.txt", "a cat\na soup"))
    (shards / "000000.tar").unlink()
    with pytest.raises(DataError, match="there is no 000000 beside 000001/000000002"):
        captioned_images(shards, meta)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = _images(tmp_path / "x", "0.png", "1.png")
    (folder / "1.png").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"1 images of .* cannot be read, 1\.png the first \(not an image"):
        captioned_images(folder, _file(tmp_path, "prompts.txt", "a\nb"))


def _of(tmp_path: Path, names: list[str], prompts: str | None, metadata: str | None = None) -> None:
    folder = _images(tmp_path / "x", *names)
    if metadata is not None:
        _file(folder, "metadata.jsonl", metadata)
    captioned_images(folder, None if prompts is None else _file(tmp_path, "prompts.txt", prompts))


@pytest.mark.parametrize(
    ("names", "prompts", "metadata", "said"),
    [
        (["a.png"], None, None, r"image a\.png has no caption"),
        ([], "a", None, "no image in"),
        (["a.png"], "a", None, "not named by number"),
        (["0.png", "2.png"], "a\nb", None, r"without a gap: there is no 000001 beside 0\.png"),
        (["5.png"], "a", None, r"without a gap: there is no 000000 beside 5\.png"),
        (["0.png", "1.png", "2.png"], "a\nb", None, "3 images .* do not match 2 prompts"),
        (["0.png"], "a\nb", None, "1 images .* do not match 2 prompts"),
        (["0.png"], "a", '{"file_name": "0.png", "text": "b"}', r"image 0\.png .* is of 'b', not of 'a'"),
        (["0.png"], None, '{"file_name": "1.png", "text": "b"}', r"image 0\.png has no caption"),
        (
            ["0.png"],
            None,
            '{"file_name": "0.png", "text": "b"}\n{"file_name": "1.png", "text": "b"}',
            r"1\.png has no",
        ),
        (["0.png"], None, '{"file_name"', r"metadata\.jsonl line 1"),
    ],
)
def test_what_does_not_match_is_refused_by_name(
    tmp_path: Path, names: list[str], prompts: str | None, metadata: str | None, said: str
) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=said):
        _of(tmp_path, names, prompts, metadata)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["animals/b7.jpg"], "1 of 2 entries .* a3 the first"),
        (["animals/b7.jpg", "food/a3.jpg", "food/c1.jpg"], "has no entry c1"),
        (["animals/b7.jpg", "b7.png", "food/a3.jpg"], "two images .* are of the id b7"),
    ],
)
def test_ids_that_do_not_match_are_refused_by_name(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        captioned_images(_images(tmp_path / "x", *names), _file(tmp_path, "meta_data.json", META))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "object from ids"),
        ({}, "object from ids"),
        ({"a": 3}, "entry a"),
        ({"a": {"prompt": "x"}}, "no category in .* entry a"),
        ({"a": {"category": "x"}}, "no prompt in .* entry a"),
        ('{"a":', "meta_data.json"),
    ],
)
def test_what_is_no_metadata_of_mjhq_is_refused(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_mjhq(_file(tmp_path, "meta_data.json", content))
