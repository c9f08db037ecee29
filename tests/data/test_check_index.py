"""What the check of images found is kept: the same set without reading it again, and never anything else."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davae.core.files import cache_folder, replacing
from davae.data import check_index, image_source, kept_arrays
from davae.data.check_index import CheckIndex, Findings, as_keys, key_of
from davae.data.folder import FolderSource
from davae.data.shard_writer import ShardWriter
from davae.data.shards import ShardSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of images that were read."""
    names: list[str] = []
    check = image_source.check_image

    def counted(data: bytes, name: str, min_side: int) -> Any:
        names.append(name)
        return check(data, name, min_side)

    monkeypatch.setattr(image_source, "check_image", counted)
    return names


def paint(path: Path, width: int, height: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three usable images, one of them turned, and three that are not usable at 16 pixels."""
    folder = tmp_path / "photos"
    paint(folder / "a.png", 20, 30)
    paint(folder / "b.jpg", 40, 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder / "b.jpg") as image:
        image.save(folder / "turned.jpg", exif=exif)
    paint(folder / "small.png", 40, 12)
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-40])
    (folder / "page.jpg").write_text("<html>")
    return folder


NAMES = ["a.png", "b.jpg", "cut.jpg", "page.jpg", "small.png", "turned.jpg"]


def seen(source: FolderSource | ShardSource) -> tuple[Any, ...]:
    return source.ids, source.sizes, source.skipped, source.fingerprint


def test_a_second_opening_examines_nothing_and_finds_the_same(photos: Path, examined: list[str]) -> None:
    first = FolderSource(photos, 16)
    assert sorted(examined) == NAMES
    examined.clear()
    assert seen(FolderSource(photos, 16)) == seen(first)
    assert examined == []
    assert dict(zip(first.ids, first.sizes, strict=True)) == {
        "a.png": (30, 20),
        "b.jpg": (50, 40),
        "turned.jpg": (40, 50),
    }
    assert [name for name, _ in first.skipped] == ["cut.jpg", "page.jpg", "small.png"]


def test_the_index_lies_in_the_cache_folder_alone(photos: Path, cache: Path) -> None:
    before = sorted(photos.rglob("*"))
    FolderSource(photos, 16)
    assert sorted(photos.rglob("*")) == before
    assert [path.suffix for path in (cache / "checked").iterdir()] == [".safetensors"]
    assert cache_folder() == cache


@pytest.mark.parametrize("sides", [(16, 45), (45, 16), (10, 16), (16, 10), (1, 25)])
def test_every_shortest_side_finds_what_a_full_check_finds(
    photos: Path, cache: Path, examined: list[str], sides: tuple[int, int]
) -> None:
    if 45 in sides:
        paint(photos / "large.png", 60, 60)
    fresh = {}
    for side in sides:
        shutil.rmtree(cache, ignore_errors=True)
        fresh[side] = seen(FolderSource(photos, side))
    shutil.rmtree(cache)
    assert {side: seen(FolderSource(photos, side)) for side in sides} == fresh
    examined.clear()
    assert {side: seen(FolderSource(photos, side)) for side in (*sides, *sides)} == fresh
    assert examined == []  # one side does not push out what is known at the other


def test_changed_and_new_images_alone_are_examined(photos: Path, cache: Path, examined: list[str]) -> None:
    FolderSource(photos, 16)
    examined.clear()
    shutil.copy(photos / "b.jpg", photos / "cut.jpg")  # mended
    paint(photos / "a.png", 18, 30)
    paint(photos / "new.png", 30, 30)
    (photos / "page.jpg").unlink()
    again = FolderSource(photos, 16)
    assert sorted(examined) == ["a.png", "cut.jpg", "new.png"]
    assert dict(zip(again.ids, again.sizes, strict=True))["a.png"] == (30, 18)
    assert [name for name, _ in again.skipped] == ["small.png"]
    shutil.rmtree(cache)
    assert seen(FolderSource(photos, 16)) == seen(again)


def test_another_time_of_the_same_bytes_costs_a_reading_and_nothing_else(photos: Path, examined: list[str]) -> None:
    first = FolderSource(photos, 16)
    examined.clear()
    os.utime(photos / "b.jpg", ns=(1, 1))
    assert seen(FolderSource(photos, 16)) == seen(first)
    assert examined == ["b.jpg"]


@pytest.mark.parametrize("damage", ["cut", "no header", "a bit", "text", "other arrays", "a folder"])
def test_a_damaged_index_is_made_again(photos: Path, cache: Path, examined: list[str], damage: str) -> None:
    want = seen(FolderSource(photos, 16))
    (path,) = (cache / "checked").iterdir()
    whole = path.read_bytes()
    changed = {"cut": whole[:-5], "no header": whole[:6], "text": b"text" * 99}
    if damage == "a bit":
        changed[damage] = whole[:-1] + bytes([whole[-1] ^ 1])
    elif damage == "other arrays":
        kept_arrays.save_file({"usable": np.zeros(3)}, path, {"format": "1"})
    if damage in changed:
        path.write_bytes(changed[damage])
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    examined.clear()
    assert seen(FolderSource(photos, 16)) == want
    assert sorted(examined) == NAMES
    examined.clear()
    assert seen(FolderSource(photos, 16)) == want
    assert sorted(examined) == (NAMES if damage == "a folder" else [])


def test_another_pillow_judges_anew(photos: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    FolderSource(photos, 16)
    for change in ((check_index.PIL, "__version__", "0.1"), (check_index.Image, "MAX_IMAGE_PIXELS", None)):
        examined.clear()
        monkeypatch.setattr(*change)
        FolderSource(photos, 16)
        assert sorted(examined) == NAMES


@pytest.mark.parametrize("obstacle", ["a file", "full", "no home"])
def test_an_unwritable_cache_folder_only_costs_time(
    photos: Path, cache: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    want = seen(FolderSource(photos, 16))
    shutil.rmtree(cache)
    if obstacle == "a file":
        cache.write_text("in the way")
    elif obstacle == "full":

        def full(_arrays: Any, path: Path, _marks: Any) -> None:
            path.write_bytes(b"half")
            raise kept_arrays.SafetensorError("No space left on device")

        monkeypatch.setattr(kept_arrays, "save_file", full)
    else:

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(kept_arrays, "cache_folder", homeless)
    for _ in range(2):
        examined.clear()
        assert seen(FolderSource(photos, 16)) == want
        assert sorted(examined) == NAMES
    assert not cache.is_dir() or not list((cache / "checked").iterdir())


def test_what_the_disk_refused_is_tried_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = image_source.Record.read

    def broken(record: image_source.Record) -> bytes:
        if record.id == "a.png":
            raise OSError(5, "Input/output error")
        return read(record)

    with monkeypatch.context() as patch:
        patch.setattr(image_source.Record, "read", broken)
        assert ("a.png", "unreadable: Input/output error") in FolderSource(photos, 16).skipped
    assert "a.png" in FolderSource(photos, 16).ids


def test_tar_shards_are_known_by_their_place(tmp_path: Path, photos: Path, examined: list[str]) -> None:
    with ShardWriter(tmp_path / "tars" / "0.tar") as writer:
        for name in ("a.png", "b.jpg", "turned.jpg"):
            writer.write(name[0], {name[-3:]: (photos / name).read_bytes()})
    pattern = str(tmp_path / "tars" / "*.tar")
    first = ShardSource(pattern, 16)
    assert len(examined) == 3
    examined.clear()
    assert seen(ShardSource(pattern, 16)) == seen(first)
    assert examined == []


def test_paths_from_elsewhere_name_the_same_set(
    photos: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FolderSource(photos, 16)
    examined.clear()
    monkeypatch.chdir(photos.parent)
    FolderSource("photos", 16)
    assert examined == []
    shutil.copytree(photos, photos.parent / "others")
    FolderSource("others", 16)
    assert sorted(examined) == NAMES


def test_several_may_open_at_once(photos: Path, cache: Path) -> None:
    found: list[tuple[Any, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(seen(FolderSource(photos, 16)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(opened == found[0] for opened in found)
    assert len(list((cache / "checked").iterdir())) == 1


def test_what_killed_processes_left_is_removed_with_the_next_writing(photos: Path, cache: Path) -> None:
    FolderSource(photos, 16)
    (path,) = (cache / "checked").iterdir()
    # A file that this process is writing, one of a process that is gone, one as earlier versions named it.
    with replacing(path.with_name("other.safetensors")) as running:
        running.write_bytes(b"half")
        left = running.name.replace(".other.", f".{path.name}.").replace(f".{os.getpid()}.", f".{_dead_process()}.")
        for name in (left, f".{path.name}.{'0f' * 16}"):
            path.with_name(name).write_bytes(b"half")
        paint(photos / "new.png", 20, 20)
        FolderSource(photos, 16)
        assert sorted((cache / "checked").iterdir()) == sorted([path, running])


def _dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_stored_hashes_are_those_of_earlier_versions(cache: Path) -> None:
    assert key_of("a/b.png", 512, 77, 1700000000).hex() == "07b646ee5f5f4a0ad8234f5bf9e6173d"
    assert key_of(os.fsdecode(b"caf\xe9"), 0, 1, 2).hex() == "219edad6c2a9f27ad7f13cd5383ae8bd"
    for where, name in (
        ("/data/photos/train-*.tar", "be54aba20490e8abdd74529c9f3cd4a4"),
        (os.fsdecode(b"/data/caf\xe9"), "ef65fcd95a2ca56ce63568e1a29f8dde"),
    ):
        CheckIndex(where).keep(as_keys(bytes(16)), findings("cut"), 5)
        assert (cache / "checked" / f"{name}.safetensors").exists()


def findings(*about: tuple[int, int] | str) -> Findings:
    sizes = [(0, 0) if isinstance(one, str) else one for one in about]
    contents = np.array([[sum(size)] * 16 for size in sizes], np.uint8)
    reasons = {position: one for position, one in enumerate(about) if isinstance(one, str)}
    return Findings(np.array(sizes, np.int32), contents, reasons)


def told(found: Findings) -> list[tuple[int, int] | str | None]:
    assert all(
        content.tolist() == [sum(size)] * 16 for content, size in zip(found.contents, found.sizes, strict=True)
    )
    sizes = [tuple(size) if all(size) else None for size in found.sizes.tolist()]
    return [found.reasons.get(position, size) for position, size in enumerate(sizes)]


def test_keys_that_end_in_zeros_are_keys(tmp_path: Path) -> None:
    keys = as_keys(b"".join(bytes([number]) + bytes(15) for number in range(5)))
    index = CheckIndex(str(tmp_path))
    index.keep(keys, findings((9, 8), "broken", (7, 9), "cut", (5, 5)), 5)
    for opened in (index, CheckIndex(str(tmp_path))):
        assert told(opened.find(keys[::-1], 5)) == [(5, 5), "cut", (7, 9), "broken", (9, 8)]
        assert told(opened.find(keys, 8)) == [(9, 8), None, None, None, None]
        assert opened.find(keys, 8).unknown == [1, 2, 3, 4]
    index.keep(keys[3:], index.find(keys[3:], 5), 5)
    assert told(CheckIndex(str(tmp_path)).find(keys, 5)) == [None, None, None, "cut", (5, 5)]


def test_each_part_of_a_key_counts() -> None:
    keys = {key_of("a", 0, 10, 5), key_of("b", 0, 10, 5), key_of("a", 1, 10, 5), key_of("a", 0, 11, 5)}
    keys |= {key_of("a", 0, 10, 6), key_of(os.fsdecode(b"\xe9"), 0, 10, 5)}
    assert {len(key) for key in keys} == {16}
    assert len(keys) == 6
