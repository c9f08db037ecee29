"""Training and test parts: disjoint, complete, the same every time, taken from disk where the disk has them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davae.data.folder import FolderSource
from davae.data.solids import SolidsSource
from davae.data.source import DataError
from davae.data.splits import Subset, filling, first, hold_out, open_train_test


def write_images(folder: Path, names: list[str], side: int = 20) -> Path:
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def write_shard(path: Path, count: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"k{number}.png")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))


def open_folder(path: Path, test_count: int, kind: str = "auto", min_side: int = 16):
    return open_train_test(kind, str(path), min_side, test_count, count=1, seed=0)


def test_held_out_images_are_the_complement_of_the_training_images() -> None:
    source = SolidsSource(50)
    train, test = hold_out(source, 8)
    assert (len(train), len(test)) == (42, 8)
    assert set(train.ids) | set(test.ids) == set(source.ids)
    assert set(train.ids).isdisjoint(test.ids)
    assert test.ids != source.ids[:8]
    assert test.ids != source.ids[-8:]


def test_the_same_images_are_held_out_every_time() -> None:
    torch.rand(3)
    assert hold_out(SolidsSource(50), 8)[1].ids == hold_out(SolidsSource(50), 8)[1].ids


def test_parts_keep_images_labels_and_captions_together() -> None:
    source = SolidsSource(50)
    for part in (*hold_out(source, 8), first(source, 7)):
        positions = [source.ids.index(name) for name in part.ids]
        assert part.labels == [source.labels[position] for position in positions]
        assert part.captions == [source.captions[position] for position in positions]
        assert part.class_names == source.class_names
        some = [len(part) - 1, 0, 3, 3]
        assert torch.equal(part.images(some, 16), source.images([positions[index] for index in some], 16))


def test_parts_keep_the_sizes(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (20 + number, 40 - number)).save(tmp_path / f"{number}.png")
    source = FolderSource(tmp_path, 16)
    for part in (*hold_out(source, 4), first(source, 5)):
        assert part.sizes == [source.sizes[source.ids.index(name)] for name in part.ids]
        assert part.images([0, 2], (18, 16)).shape == (2, 3, 18, 16)
    assert hold_out(SolidsSource(50), 8)[0].sizes is None


def test_the_part_that_fills_a_size(tmp_path: Path) -> None:
    for number in range(12):
        Image.new("RGB", (20 + number, 40 - number)).save(tmp_path / f"{number:02d}.png")
    source = FolderSource(tmp_path, 16)
    assert filling(source, 24).ids == [f"{number:02d}.png" for number in range(4, 12)]
    assert filling(source, (37, 20)).ids == ["00.png", "01.png", "02.png", "03.png"]
    assert filling(source, 24).images([0, 7], 24).shape == (2, 3, 24, 24)
    assert filling(source, 20) is source
    assert filling(SolidsSource(3), 4096).ids == SolidsSource(3).ids
    with pytest.raises(DataError, match=r"No image fills 99x30 pixels: got 12 images.*Lower image_size"):
        filling(source, (30, 99))


def test_parts_have_fingerprints_of_their_own() -> None:
    source = SolidsSource(50)
    parts = [source, *hold_out(source, 8), *hold_out(source, 9), first(source, 7)]
    assert len({part.fingerprint for part in parts}) == len(parts)
    assert hold_out(SolidsSource(50, seed=1), 8)[0].fingerprint != hold_out(source, 8)[0].fingerprint


def test_first_spreads_over_the_whole_set() -> None:
    source = SolidsSource(100)
    assert first(source, 4).ids == [source.ids[index] for index in (0, 25, 50, 75)]
    assert first(source, 100) is source
    assert first(source, 101) is source
    assert len(set(first(source, 99).ids)) == 99


@pytest.mark.parametrize("count", [5, 6])
def test_holding_out_everything_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"hold out {count} test images of a set of 5\. Lower data\.test_count"):
        hold_out(SolidsSource(5), count)


def test_a_folder_without_parts_is_held_out_from(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{kind}/{number}.png" for kind in ("ant", "bee") for number in range(6)])
    train, test = open_folder(tmp_path, 3)
    assert (len(train), len(test)) == (9, 3)
    assert set(train.ids).isdisjoint(test.ids)
    assert train.class_names == test.class_names == ("ant", "bee")


def test_train_and_val_folders_are_the_parts(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind in ("ant", "bee") for number in range(4)]
    write_images(tmp_path / "train", names)
    write_images(tmp_path / "val", names)
    train, test = open_folder(tmp_path, 6)
    assert train.ids == names
    assert len(test) == 6
    assert {name.split("/")[0] for name in test.ids} == {"ant", "bee"}  # spread, not the first six


def test_train_and_val_shards_are_the_parts(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-00000.tar", 4)
    write_shard(tmp_path / "train-00001.tar", 4)
    write_shard(tmp_path / "val-00000.tar", 3)
    for kind in ("auto", "shards"):
        train, test = open_folder(tmp_path, 2, kind)
        assert (len(train), len(test)) == (8, 2)
        assert {name.split("-")[0] for name in test.ids} == {"val"}


def test_other_shards_are_held_out_from(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", 4)
    write_shard(tmp_path / "b.tar", 4)
    train, test = open_folder(tmp_path, 3)
    assert (len(train), len(test)) == (5, 3)
    assert [len(part) for part in open_folder(tmp_path / "a.tar", 1)] == [3, 1]
    assert [len(part) for part in open_folder(tmp_path / "{a,b}.tar", 1)] == [7, 1]


def test_a_subset_tells_what_its_source_skipped(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{number}.png" for number in range(6)])
    write_images(tmp_path, ["tiny.png"], side=8)
    train, test = open_folder(tmp_path, 2)
    assert [name for name, _ in train.skipped] == ["tiny.png"]
    assert "tiny.png" not in [*train.ids, *test.ids]
    assert Subset(train, [0], "test").skipped == train.skipped
