"""What shards hold is kept: the same set without reading a header again, and never another one."""

import io
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from davae.data import shards
from davae.data.errors import DataError
from davae.data.shards import ShardSource


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of shards whose headers were read."""
    names: list[str] = []
    plain = shards.read_samples

    def counted(file: Path, name: str, kind: str) -> Any:
        names.append(name)
        return plain(file, name, kind)

    monkeypatch.setattr(shards, "read_samples", counted)
    return names


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(4)]


def write_shard(path: Path, numbers: range) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            notes = {"png": PICTURES[number % 4], "txt": b"caf\xc3\xa9 %d" % number, "cls": b"%d" % (number % 3)}
            for extension, data in notes.items():
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        alone = tarfile.TarInfo("alone.txt")
        tar.addfile(alone)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(3):
        write_shard(tmp_path / "tars" / f"{number}.tar", range(4 * number, 4 * number + 4))
    return tmp_path / "tars"


def seen(source: ShardSource) -> tuple[Any, ...]:
    parts = (source.ids, source.labels, source.captions, source.sizes)
    return (
        *(list(part) for part in parts),
        source.class_names,
        source.skipped,
        source.fingerprint,
        source.labelled_fingerprint,
        source.images(range(len(source)), 16).tolist(),
    )


def test_a_second_opening_reads_no_header_and_finds_the_same(tars: Path, read: list[str]) -> None:
    first = seen(ShardSource(tars, 16))
    assert read == ["0", "1", "2"]
    assert seen(ShardSource(tars, 16)) == first
    assert read == ["0", "1", "2"]
    assert len(first[0]) == 12
    assert [name for name, _ in first[5]] == ["0/alone", "1/alone", "2/alone"]


def test_changed_shards_alone_are_read(tars: Path, read: list[str], cache: Path) -> None:
    ShardSource(tars, 16)
    read.clear()
    write_shard(tars / "1.tar", range(20, 23))
    os.utime(tars / "2.tar", ns=(1, 1))
    (tars / "0.tar").unlink()
    write_shard(tars / "3.tar", range(30, 32))
    again = seen(ShardSource(tars, 16))
    assert read == ["1", "2", "3"]
    shutil.rmtree(cache)
    assert seen(ShardSource(tars, 16)) == again


def test_a_shard_that_was_replaced_by_one_of_its_size_and_time_is_read(tars: Path, read: list[str]) -> None:
    before = seen(ShardSource(tars, 16))
    stat = (tars / "1.tar").stat()
    write_shard(tars / "other", range(5, 9))
    (tars / "other").replace(tars / "1.tar")
    os.utime(tars / "1.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (tars / "1.tar").stat().st_size == stat.st_size
    assert seen(ShardSource(tars, 16))[0] != before[0]


def test_one_file_a_set_is_kept(tars: Path, cache: Path) -> None:
    for _ in range(2):
        ShardSource(tars, 16)
    assert [path.suffix for path in (cache / "shards").iterdir()] == [".safetensors"]


def flip(data: bytes, place: float, mask: int) -> bytes:
    changed = bytearray(data)
    changed[int(place * len(data))] ^= mask
    return bytes(changed)


damages = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0)),
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
    st.tuples(st.just("zeros"), st.floats(0, 1, exclude_max=True), st.integers(1, 1500)),
)
bounded = settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def damaged(data: bytes, damage: tuple[str, float, int]) -> bytes:
    kind, place, amount = damage
    start = int(place * len(data))
    if kind == "cut":
        return data[:start]
    if kind == "flip":
        return flip(data, place, amount)
    return data[:start] + bytes(len(data[start : start + amount])) + data[start + amount :]


@bounded
@given(damages)
@example(("cut", 0.0, 0))
@example(("zeros", 0.0, 512))
def test_a_damaged_index_costs_a_reading_and_nothing_else(
    tars: Path, cache: Path, read: list[str], damage: tuple[str, float, int]
) -> None:
    want = seen(ShardSource(tars, 16))
    (path,) = (cache / "shards").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, damage))
    read.clear()
    assert seen(ShardSource(tars, 16)) == want
    assert read in ([], ["0", "1", "2"])  # a bit of padding is of no consequence


@bounded
@given(damages)
@example(("zeros", 0.25, 512))
def test_a_damaged_tar_is_refused_or_holds_what_it_held(tars: Path, damage: tuple[str, float, int]) -> None:
    whole = (tars / "1.tar").read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "1.tar").write_bytes(whole)
        ids, *_, pictures = seen(ShardSource(folder, 16))
        right = dict(zip(ids, pictures, strict=True))
        (Path(folder) / "1.tar").write_bytes(damaged(whole, damage))
        try:
            source = ShardSource(folder, 16)
        except DataError:
            return
        named = {*source.ids, *(name for name, _ in source.skipped)}
        assert named == {*ids, "1/alone"}
        if damage[0] == "flip":  # a CRC notices it; what zeros make of a stream may be a picture
            found = dict(zip(source.ids, source.images(range(len(source)), 16).tolist(), strict=True))
            assert all(found[name] == right[name] for name in found)


@pytest.mark.parametrize("size", [-512, -1024, -1, 2**62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_sizes_that_lead_nowhere_are_refused(tmp_path: Path, size: int, kind: bytes) -> None:
    write_shard(tmp_path / "good.tar", range(1))
    bad = tarfile.TarInfo("bad.png")
    bad.size, bad.type = size, kind
    header = bad.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "s.tar").write_bytes((tmp_path / "good.tar").read_bytes()[: 6 * 512] + header + bytes(1024))
    if (size, kind) == (-1, tarfile.GNUTYPE_SPARSE):  # nothing is stored, of a file that has only holes
        assert dict(ShardSource(tmp_path / "s.tar", 16).skipped).keys() == {"s/bad"}
        return
    with pytest.raises(DataError, match="truncated or damaged|cannot be read"):
        ShardSource(tmp_path / "s.tar", 16)
