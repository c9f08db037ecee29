"""Shards that are written whole or not at all, the same bytes for the same samples, and read back as a data set."""

import io
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from davae.data.errors import DataError
from davae.data.shard_writer import ShardWriter
from davae.data.shards import ShardSource


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, count: int = 3) -> bytes:
    with ShardWriter(path) as shard:
        for index in range(count):
            caption = f"Nr. {index}: ein Würfel"
            shard.write(
                f"{index:09d}", {"png": png("red"), "txt": caption, "json": {"seed": index, "prompt": caption}}
            )
    return path.read_bytes()


def test_a_shard_is_a_captioned_data_set(tmp_path: Path) -> None:
    write(tmp_path / "000000.tar")
    write(tmp_path / "000001.tar", count=1)
    source = ShardSource(tmp_path, min_side=8)
    assert list(source.ids) == ["000000/000000000", "000000/000000001", "000000/000000002", "000001/000000000"]
    assert list(source.all_captions) == [(f"Nr. {index}: ein Würfel",) for index in (0, 1, 2, 0)]
    assert source.images([3], 8)[0, :, 0, 0].tolist() == [255, 0, 0]


def test_what_stands_beside_an_image_is_not_a_second_one(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "000000.tar") as shard:
        shard.write("0", {"png": png("red"), "preview.png": png("blue"), "txt": "red"})
    source = ShardSource(tmp_path, min_side=8)
    assert len(source) == 1
    assert source.images([0], 8)[0, :, 0, 0].tolist() == [255, 0, 0]


def test_equal_samples_are_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tar")
    time.sleep(1.1)  # tar keeps times to the second
    assert write(tmp_path / "other" / "b.tar") == first


def test_json_is_in_order(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar") as shard:
        shard.write("0", {"json": {"b": 1, "a": 2}})
    with tarfile.open(tmp_path / "a.tar") as tar:
        member = tar.extractfile("0.json")
        assert member is not None
        assert member.read() == b'{"a": 2, "b": 1}'


def test_an_error_leaves_no_shard_and_keeps_the_one_before(tmp_path: Path) -> None:
    before = write(tmp_path / "a.tar")

    def fail() -> None:
        with ShardWriter(tmp_path / "a.tar") as shard:
            shard.write("0", {"txt": "half"})
            assert (tmp_path / "a.tar").read_bytes() == before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == before


def test_what_killed_processes_left_of_a_shard_is_removed(tmp_path: Path) -> None:
    for name in (".a.tar.tmp", ".a.tar.123.tmp", ".a.tar.node-1.123.tmp", ".b.tar.123.tmp", ".b.tar.tmp"):
        (tmp_path / name).write_bytes(b"half")
    write(tmp_path / "a.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.tar.123.tmp", ".b.tar.tmp", "a.tar"]


def test_a_disk_without_space_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_tar: tarfile.TarFile) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "close", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["a.b", "", "a/b", "ü"])
def test_keys_that_webdataset_would_split_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="taken or malformed"), ShardWriter(tmp_path / "a.tar") as shard:
        shard.write(key, {"txt": "x"})


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="taken or malformed"), ShardWriter(tmp_path / "a.tar") as shard:
        shard.write("0", {"txt": "x"})
        shard.write("0", {"txt": "y"})
