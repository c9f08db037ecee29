"""What is judged: names, order and pixels of folders, shards and arrays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davae.data.errors import DataError
from davae.data.image_list import open_images
from davae.data.npz import array_names, read_array
from davae.data.shard_writer import ShardWriter


def pixels(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decoded(path: Path) -> list[np.ndarray]:
    images = open_images(path)
    return [images.decode(i, images.content(i)) for i in range(len(images))]


def test_a_folder_gives_whole_images_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for number, name in enumerate(("b/2.png", "b/10.png", "a/1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(number, 5 + number)).save(tmp_path / name)
    images = open_images(tmp_path)
    assert list(images.ids) == ["a/1.png", "b/10.png", "b/2.png"]
    assert list(images.sizes) == [(7, 9), (6, 9), (5, 9)]
    assert all(np.array_equal(got, pixels(n, 5 + n)) for got, n in zip(decoded(tmp_path), (2, 1, 0), strict=True))


def test_what_is_no_image_is_named_and_left_out(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"nothing")
    images = open_images(tmp_path)
    assert list(images.ids) == ["0.png"]
    assert [name for name, _ in images.skipped] == ["1.png"]


def test_previews_beside_generated_images_are_not_judged(tmp_path: Path) -> None:
    for name in ("000000", "000000-preview", "000000-baseline", "000001-preview", "night-preview"):
        Image.fromarray(pixels(0)).save(tmp_path / f"{name}.png")
    assert list(open_images(tmp_path).ids) == ["000000.png", "000001-preview.png", "night-preview.png"]


def test_the_grid_of_drawn_images_is_not_judged(tmp_path: Path) -> None:
    for name in ("drawn/000000.png", "drawn/grid.png", "photos/grid.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(0)).save(tmp_path / name)
    (tmp_path / "drawn" / "generation.json").write_text("{}")
    assert list(open_images(tmp_path / "drawn").ids) == ["000000.png"]
    assert list(open_images(tmp_path / "photos").ids) == ["grid.png"]


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is nothing at .*nowhere: allowed is a folder of images, tar shards"):
        open_images(tmp_path / "nowhere")


def test_shards_give_their_samples(tmp_path: Path) -> None:
    Image.fromarray(pixels(3)).save(tmp_path / "x.png")
    with ShardWriter(tmp_path / "shards" / "000000.tar") as shard:
        shard.write("000000007", {"png": (tmp_path / "x.png").read_bytes()})
    assert list(open_images(tmp_path / "shards").ids) == ["000000/000000007"]
    assert np.array_equal(decoded(tmp_path / "shards" / "000000.tar")[0], pixels(3))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_gives_its_images_without_being_loaded(tmp_path: Path, save) -> None:
    stack = np.stack([pixels(n) for n in range(3)])
    save(tmp_path / "samples.npz", stack, labels=np.arange(3))
    assert isinstance(read_array(tmp_path / "samples.npz", "arr_0"), np.memmap)
    assert np.array_equal(decoded(tmp_path / "samples.npz"), stack)
    assert set(array_names(tmp_path / "samples.npz")) == {"labels", "arr_0"}


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), "float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"\[2, 3, 4, 4\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"\[0, 4, 4, 3\]"),
        (np.array([{}]), "Python objects"),
    ],
)
def test_an_array_of_something_else_is_refused(tmp_path: Path, array: np.ndarray, got: str) -> None:
    np.savez(tmp_path / "samples.npz", array)
    with pytest.raises(DataError, match=got):
        open_images(tmp_path / "samples.npz")


def test_a_damaged_npz_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, np.zeros((2, 4, 4, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="allowed is a whole npz"):
        open_images(path)


def test_an_image_that_went_away_is_named(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "0.png")
    images = open_images(tmp_path)
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"cannot read image 0\.png"):
        images.content(0)
