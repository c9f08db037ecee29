"""Checkpoints survive kills, full disks and changed minds."""

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from davae.train import checkpoint
from davae.train.checkpoint import CheckpointError, CheckpointStore, differences

IDENTITY = {"steps": 100, "optim": {"lr": 1e-4, "betas": (0.9, 0.95)}, "seed": 0}
NET = "net.safetensors"


def groups(value: float) -> dict[str, dict[str, Tensor]]:
    """A network, the state of its optimizer, and the still empty state of another optimizer."""
    net = {"weight": torch.full((6, 5), value).T, "count": torch.tensor(int(value))}
    return {"net": net, "net.optimizer": {"0.step": torch.tensor(value)}, "judge.optimizer": {}}


def saved(folder: Path, *steps: int, keep: int = 2) -> CheckpointStore:
    store = CheckpointStore(folder, IDENTITY, keep)
    for step in steps:
        store.save(step, groups(step))
    return store


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    newest = saved(tmp_path, 7).latest()
    assert newest.step == 7
    assert newest.groups.keys() == groups(7).keys()
    for name, group in groups(7).items():
        assert newest.groups[name].keys() == group.keys()
        for key, tensor in group.items():
            assert newest.groups[name][key].dtype == tensor.dtype
            assert torch.equal(newest.groups[name][key], tensor)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nowhere", IDENTITY).latest() is None
    assert CheckpointStore(tmp_path / "nowhere", IDENTITY).belongs()


def test_the_newest_wins(tmp_path: Path) -> None:
    store = saved(tmp_path, 9, 10, 1000, keep=3)
    assert store.latest().step == 1000
    assert saved(tmp_path).latest().step == 1000  # another process, later


def test_the_last_n_stay(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert names(tmp_path) == ["checkpoint-00000003", "checkpoint-00000004"]
    saved(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["checkpoint-00000005"]


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def text(path: Path) -> bytes:
    return (path / "checkpoint.json").read_bytes()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "tensors cut off": lambda path: cut(path / NET, -1),
    "tensors empty": lambda path: cut(path / NET, 0),
    "tensors missing": lambda path: (path / NET).unlink(),
    "tensors zeroed": lambda path: (path / NET).write_bytes(bytes((path / NET).stat().st_size)),
    "a bit of the tensors": lambda path: flip(path / NET, -3),
    "a bit of the optimizer": lambda path: flip(path / "net.optimizer.safetensors", -2),
    "a bit of the step": lambda path: flip(path / "checkpoint.json", text(path).index(b'"step"') + 8),
    "a bit of a setting": lambda path: flip(path / "checkpoint.json", text(path).index(b"0.95") + 3),
    "manifest of another kind": lambda path: (path / "checkpoint.json").write_text("[]"),
    "manifest cut off": lambda path: cut(path / "checkpoint.json", 40),
    "manifest empty": lambda path: cut(path / "checkpoint.json", 0),
    "manifest missing": lambda path: (path / "checkpoint.json").unlink(),
    "manifest of noise": lambda path: (path / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
    "manifest without files": lambda path: (path / "checkpoint.json").write_text('{"step": 20}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_newest_is_passed_over_and_named(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = saved(tmp_path, 10, 20)
    damage(tmp_path / "checkpoint-00000020")
    newest = store.latest()
    assert newest.step == 10
    assert torch.equal(newest.groups["net"]["weight"], groups(10)["net"]["weight"])
    assert "checkpoint-00000020" in caplog.text
    damage(tmp_path / "checkpoint-00000010")
    assert store.latest() is None


def test_a_checkpoint_of_an_earlier_version_has_no_checksums(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10).latest().path
    for file in folder.glob("*.safetensors"):
        save_file(load_file(file), file)
    manifest = json.loads(text(folder))
    del manifest["checksum"]
    manifest["files"] = {name: (folder / f"{name}.safetensors").stat().st_size for name in manifest["files"]}
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    assert torch.equal(saved(tmp_path).latest().groups["net"]["weight"], groups(10)["net"]["weight"])


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_does_not_crowd_out_a_good_one(tmp_path: Path, keep: int) -> None:
    store = saved(tmp_path, 10, 20, keep=keep)
    cut(tmp_path / "checkpoint-00000020" / NET, -1)
    for step in (12, 14, 16):
        store.save(step, groups(step))
        assert store.latest().step == step
    store.save(20, groups(20))
    assert store.latest().step == 20


def test_a_half_written_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    store = saved(tmp_path, 10, 20)
    (tmp_path / "checkpoint-00000020").rename(tmp_path / ".checkpoint-00000020.tmp")  # killed before the rename
    assert store.latest().step == 10
    store.save(15, groups(15))
    assert names(tmp_path) == ["checkpoint-00000010", "checkpoint-00000015"]
    (tmp_path / "checkpoint-00000015").rename(tmp_path / ".checkpoint-00000015.tmp")
    store.save(15, groups(16))
    assert store.latest().groups["net"]["count"] == 16
    assert names(tmp_path) == ["checkpoint-00000010", "checkpoint-00000015"]


@pytest.mark.parametrize("process", [os.getpid(), 1, 4_194_304], ids=["alive", "first", "largest"])
def test_what_a_killed_process_left_is_removed_whatever_its_number(tmp_path: Path, process: int) -> None:
    """In a container the next process often has the number of the one before it."""
    store = saved(tmp_path, 10)
    (tmp_path / "checkpoint-00000010").rename(tmp_path / f".checkpoint-00000010.{process}.tmp")
    (tmp_path / ".checkpoint-00000007.tmp").mkdir()  # as earlier versions named them
    (tmp_path / ".other.tmp").touch()
    assert store.latest() is None
    store.save(20, groups(20))
    assert names(tmp_path) == [".other.tmp", "checkpoint-00000020"]


def test_a_checkpoint_is_a_folder_of_files_by_group(tmp_path: Path) -> None:
    """To change this is to give up every run that is under way."""
    folder = saved(tmp_path, 7).latest().path
    files = {f"{name}.safetensors": (folder / f"{name}.safetensors").stat().st_size for name in groups(7)}
    assert names(folder) == sorted([*files, "checkpoint.json"])
    stored = json.loads((folder / "checkpoint.json").read_text())
    assert re.fullmatch(r"[0-9a-f]{32}", stored.pop("checksum"))
    assert stored == {
        "format_version": 1,
        "step": 7,
        "files": {name.removesuffix(".safetensors"): size for name, size in files.items()},
        "identity": {"steps": 100, "optim": {"lr": 1e-4, "betas": [0.9, 0.95]}, "seed": 0},
    }


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    other = {"steps": 100, "optim": {"lr": 2e-4, "betas": (0.9, 0.95)}, "data": "solids"}
    store = CheckpointStore(tmp_path, other)
    with pytest.raises(CheckpointError) as refusal:
        store.latest()
    message = str(refusal.value)
    assert "optim.lr: 0.0001 -> 0.0002" in message
    assert "data: None -> solids" in message
    assert "seed: 0 -> None" in message
    assert "steps" not in message
    assert "betas" not in message  # tuples come back from disk as lists and are still the same
    assert "--overwrite" in message
    assert not store.belongs()
    assert saved(tmp_path).belongs()  # and the checkpoint is still its owner's
    store.clear()
    assert store.belongs()
    assert store.latest() is None


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    store = saved(tmp_path, 10)
    manifest = tmp_path / "checkpoint-00000010" / "checkpoint.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CheckpointError, match="format 2"):
        store.latest()


def test_differences_name_the_path_of_each_change() -> None:
    assert differences({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 1, "c": [1, 3]}}) == ["a.c: [1, 2] -> [1, 3]"]
    assert differences({"a": None}, {"a": {"b": 1}}) == ["a: None -> {'b': 1}"]
    assert differences({"a": 1}, {"a": 1}) == []


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes; the system's own refusal, not a stand-in."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def failing(owner: Any, name: str, after: int) -> Iterator[None]:
    """`owner.name` works `after` times, then the disk is full."""
    calls, real = iter(range(after)), getattr(owner, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *args: real(*args) if next(calls, None) is not None else no_space())
        yield


FULL_DISKS = {
    "the first file": lambda: failing(checkpoint, "save_tensors", 0),
    "a later file": lambda: failing(checkpoint, "save_tensors", 2),
    "a flush": lambda: failing(os, "fsync", 1),
    "the manifest": lambda: failing(os, "fsync", 3),
    "the rename": lambda: failing(Path, "rename", 0),
    "the system's limit": lambda: small_files(100),
}


@pytest.mark.parametrize("full", FULL_DISKS.values(), ids=FULL_DISKS.keys())
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, full: Callable[[], Any]) -> None:
    store = saved(tmp_path, 10, keep=1)
    with full(), pytest.raises(CheckpointError, match="step 20") as failure:
        store.save(20, groups(20))
    assert isinstance(failure.value.__cause__, Exception)
    assert "checkpoint-00000010" in str(failure.value)
    assert "Free some space" in str(failure.value)
    assert names(tmp_path) == ["checkpoint-00000010"]  # nothing half-written takes the space that is left
    assert torch.equal(store.latest().groups["net"]["weight"], groups(10)["net"]["weight"])
    store.save(20, groups(20))
    assert store.latest().step == 20


def test_a_full_disk_at_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    with small_files(100), pytest.raises(CheckpointError, match="No earlier one exists"):
        saved(tmp_path, 10)
    assert saved(tmp_path).latest() is None


def test_writing_a_step_again_on_a_full_disk_keeps_the_first(tmp_path: Path) -> None:
    store = saved(tmp_path, 10, keep=1)
    with small_files(100), pytest.raises(CheckpointError):
        store.save(10, groups(11))
    assert store.latest().groups["net"]["count"] == 10
