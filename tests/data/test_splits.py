"""Training and test parts: disjoint, complete, the same every time, taken from disk where the disk has them."""

import io
import json
import math
import os
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from davae.data.errors import DataError
from davae.data.folder import FolderSource
from davae.data.hold_out import HoldOut, Rule, Subset, filling, first, hold_out
from davae.data.image_source import ImageSource
from davae.data.shard_writer import ShardWriter
from davae.data.shards import ShardSource
from davae.data.solids import SolidsSource
from davae.data.splits import SetKind, open_train_test


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


def open_folder(path: Path, test: HoldOut | int, kind: SetKind = "auto", min_side: int = 16):
    return open_train_test(kind, str(path), min_side, test, 1, 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FolderSource:
    """Fifty images of three classes, with captions."""
    folder = write_images(tmp_path_factory.mktemp("photos"), [f"{number:02d}.png" for number in range(50)])
    entries = [{"file_name": f"{n:02d}.png", "text": f"photo {n}", "label": n % 3} for n in range(50)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return FolderSource(folder, 16)


def test_held_out_images_are_the_complement_of_the_training_images(source: FolderSource) -> None:
    for choice in (HoldOut(count=8), HoldOut(count=8, rule="position"), HoldOut(share=0.2)):
        train, test = hold_out(source, choice)
        assert choice.share is not None or (len(train), len(test)) == (42, 8)
        assert set(train.ids) | set(test.ids) == set(source.ids)
        assert set(train.ids).isdisjoint(test.ids)
        assert test.ids not in (source.ids[: len(test)], source.ids[-len(test) :])
        assert (train.ids, test.ids) == (sorted(train.ids), sorted(test.ids))


def test_the_same_images_are_held_out_in_every_version() -> None:
    names = [f"n{number}/photo {number}.jpg" for number in range(100)]
    chosen = [names.index(name) for name in HoldOut(count=5).choose(names)]
    assert sorted(chosen) == [6, 7, 8, 58, 70]
    assert HoldOut(share=0.025).choose(names) == {names[index] for index in (6, 70)}


def test_the_old_rule_still_chooses_what_it_chose(source: FolderSource) -> None:
    train, test = hold_out(source, HoldOut(count=8, rule="position"))
    assert [source.ids.index(name) for name in test.ids] == [3, 7, 8, 10, 14, 32, 38, 46]


ids = st.sets(st.text(max_size=6), min_size=2, max_size=40)
choices = st.builds(HoldOut, count=st.integers(1, 12)) | st.builds(HoldOut, share=st.floats(0.01, 0.99))


@given(ids, ids, choices)
def test_growth_makes_no_test_image_of_a_training_image(before: set[str], added: set[str], choice: HoldOut) -> None:
    old, new = choice.choose(before), choice.choose(before | added)
    assert new & before <= old
    if choice.share is not None:
        assert new & before == old


@given(ids, st.text(max_size=6), choices)
def test_an_image_more_changes_one_test_image_at_most(before: set[str], added: str, choice: HoldOut) -> None:
    assert len(choice.choose(before) - choice.choose(before | {added})) <= (choice.share is None)


@given(ids, choices, st.randoms())
def test_the_order_of_the_images_decides_nothing(names: set[str], choice: HoldOut, random: Random) -> None:
    order = sorted(names)
    random.shuffle(order)
    assert choice.choose(order) == choice.choose(sorted(names))
    if choice.share is None:
        assert len(choice.choose(order)) == min(choice.count, len(names))


@given(ids, st.integers(1, 12), st.integers(1, 12))
def test_a_larger_count_keeps_what_is_held_out(names: set[str], count: int, more: int) -> None:
    assert HoldOut(count=count).choose(names) <= HoldOut(count=count + more).choose(names)


def test_a_share_is_that_part_of_many_images() -> None:
    assert len(HoldOut(share=0.1).choose([str(number) for number in range(20_000)])) == pytest.approx(2000, abs=150)


def test_names_that_are_no_text_can_be_held_out() -> None:
    names = [os.fsdecode(b"caf\xe9%d.jpg" % number) for number in range(20)]
    assert len(HoldOut(count=3).choose(names)) == 3


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A hundred images, every third one too small for 16 pixels."""
    write_images(tmp_path, [f"{number:02d}.png" for number in range(100) if number % 3])
    return write_images(tmp_path, [f"{number:02d}.png" for number in range(0, 100, 3)], side=8)


def ids_of(parts: tuple[ImageSource, ImageSource]) -> tuple[set[str], set[str]]:
    return set(parts[0].ids), set(parts[1].ids)


@pytest.mark.parametrize("choice", [HoldOut(count=20), HoldOut(share=0.2)])
def test_test_images_of_a_larger_size_are_test_images_of_a_smaller_one(mixed: Path, choice: HoldOut) -> None:
    train, test = ids_of(open_folder(mixed, choice, min_side=8))
    larger_train, larger_test = ids_of(open_folder(mixed, choice, min_side=16))
    assert larger_test < test
    assert larger_train < train
    assert larger_test | larger_train == {f"{number:02d}.png" for number in range(100) if number % 3}


@pytest.mark.parametrize("choice", [HoldOut(count=20), HoldOut(share=0.2)])
def test_added_and_damaged_images_leave_the_others_where_they_were(mixed: Path, choice: HoldOut) -> None:
    train, test = ids_of(open_folder(mixed, choice))
    for name in (sorted(test)[0], sorted(train)[0]):
        whole = (mixed / name).read_bytes()
        (mixed / name).write_bytes(whole[:60])
        assert ids_of(open_folder(mixed, choice)) == (train - {name}, test - {name})
        (mixed / name).write_bytes(whole)
    for number in range(12):
        write_images(mixed, [f"new-{number}.png"])
        new_train, new_test = ids_of(open_folder(mixed, choice))
        assert not new_test & train
        assert len(test - new_test) <= (number + 1 if choice.share is None else 0)
        assert new_train | new_test == train | test | {f"new-{added}.png" for added in range(number + 1)}


def test_listed_images_that_are_not_there_are_candidates_and_unlisted_ones_are_not(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(30)]
    write_images(tmp_path, [*names, "unlisted.png"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    train, test = ids_of(open_folder(tmp_path, 10))
    for name in names[::2]:
        (tmp_path / name).unlink()
    assert ids_of(open_folder(tmp_path, 10)) == (train - set(names[::2]), test - set(names[::2]))
    assert sorted(FolderSource(tmp_path, 16).candidates) == names


def test_samples_without_an_image_are_candidates(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.write("0", {"txt": "no image"})
        shard.write("1", {"png": (write_images(tmp_path, ["x.png"]) / "x.png").read_bytes()})
    assert sorted(ShardSource(tmp_path, 16).candidates) == ["a/0", "a/1"]


def test_parts_without_a_usable_image_are_refused(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(12)]
    chosen = HoldOut(count=3).choose(names)
    for name in names:
        write_images(tmp_path, [name], side=8 if name in chosen else 20)
    with pytest.raises(DataError, match=r"none of the 3 images held out of 12 can .*small.*Raise data\.test_count"):
        open_folder(tmp_path, 3)
    with pytest.raises(DataError, match=r"all 9 usable images of 12 are held out\. Lower data\.test_count"):
        for name in names:
            write_images(tmp_path, [name], side=20 if name in HoldOut(count=9).choose(names) else 8)
        open_folder(tmp_path, 9)
    with pytest.raises(DataError, match=r"smallest of 12 hashes is not below data\.test_share 1e-09\. Raise it"):
        open_folder(tmp_path, HoldOut(share=1e-9))
    with pytest.raises(DataError, match=r"all 9 usable .* are held out\. Lower data\.test_share"):
        open_folder(tmp_path, HoldOut(share=0.999999))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "Cannot hold out 0 test images; allowed are 1 and more"),
        ({"share": 0.0}, r"a share of 0\.0; allowed are numbers between 0 and 1"),
        ({"share": 1.0}, r"a share of 1\.0; allowed"),
        ({"share": math.nan}, "a share of nan; allowed"),
        ({"share": 0.1, "rule": "position"}, r"a share of 0\.1 by position"),
    ],
)
def test_choices_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HoldOut(**settings)


def test_a_share_of_what_has_its_own_test_images_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/0.png", "val/0.png"])
    with pytest.raises(
        DataError, match=r"test_share 0\.1, but .* has a part val of its own; allowed is data\.test_count"
    ):
        open_folder(tmp_path, HoldOut(share=0.1))
    with pytest.raises(DataError, match=r"test_share 0\.1, but solids render their test images"):
        open_train_test("solids", None, 1, HoldOut(share=0.1), 10, 0)
    with pytest.raises(DataError, match=r"kind folder: got no path; allowed is a folder or shards; set data\.path"):
        open_train_test("folder", None, 1, 3, 10, 0)


def test_parts_keep_images_labels_and_captions_together(source: FolderSource) -> None:
    for part in (*hold_out(source, HoldOut(count=8)), first(source, 7)):
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
    for part in (*hold_out(source, HoldOut(count=4)), first(source, 5)):
        assert part.sizes == [source.sizes[source.ids.index(name)] for name in part.ids]
        assert part.images([0, 2], (18, 16)).shape == (2, 3, 18, 16)
    assert first(SolidsSource(50), 8).sizes is None


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


def test_parts_have_fingerprints_of_their_own(source: FolderSource) -> None:
    choices = [HoldOut(count=8), HoldOut(count=9), HoldOut(count=8, rule="position"), HoldOut(share=0.5)]
    parts = [source, first(source, 7)]
    for choice in choices:
        held = hold_out(source, choice)
        parts += held
    assert len({part.fingerprint for part in parts}) == len(parts)


def test_parts_of_the_same_images_have_one_fingerprint(source: FolderSource) -> None:
    some = Subset(source, [7, 3, 11])
    same = Subset(Subset(source, [11, 40, 3, 7]), [0, 2, 3])
    assert same.ids == ["11.png", "03.png", "07.png"]
    assert (same.fingerprint, same.labelled_fingerprint) == (some.fingerprint, some.labelled_fingerprint)
    train, test = hold_out(source, HoldOut(count=8))
    assert hold_out(source, HoldOut(count=8))[0].fingerprint == train.fingerprint != test.fingerprint


def test_first_spreads_over_the_whole_set() -> None:
    source = SolidsSource(100)
    assert first(source, 4).ids == [source.ids[index] for index in (0, 25, 50, 75)]
    assert first(source, 100) is source
    assert first(source, 101) is source
    assert len(set(first(source, 99).ids)) == 99


@pytest.mark.parametrize("rule", ["id", "position"])
@pytest.mark.parametrize("count", [50, 51])
def test_holding_out_everything_is_refused(source: FolderSource, count: int, rule: Rule) -> None:
    with pytest.raises(DataError, match=rf"hold out {count} test images of a set of 50\. Lower data\.test_count"):
        hold_out(source, HoldOut(count=count, rule=rule))


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
    assert Subset(train, [0]).skipped == train.skipped
