"""Files are whole or not there, whatever happens to their writer, and hashed by what they contain."""

import errno
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from davae.core import files
from davae.core.files import (
    cache_folder,
    file_hash,
    file_sha256,
    folder_hash,
    link_folder,
    replacing,
    replacing_folder,
    sweep,
    sweep_below,
    text_hash,
    write_text,
)

Replacing = Callable[..., AbstractContextManager[Path]]


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> text of every file, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(path: Path, text: str, is_folder: bool) -> None:
    """Write to a temporary path of either kind."""
    (path / "model.json" if is_folder else path).write_text(text)


@pytest.fixture(params=["file", "folder"])
def is_folder(request: pytest.FixtureRequest) -> bool:
    return request.param == "folder"


@pytest.fixture
def replace(is_folder: bool) -> Replacing:
    return replacing_folder if is_folder else replacing


@pytest.mark.parametrize("sync", [False, True])
def test_what_is_complete_takes_the_place_of_the_old(
    tmp_path: Path, replace: Replacing, is_folder: bool, sync: bool
) -> None:
    path = tmp_path / "deep" / "down" / "target"
    name = "target/model.json" if is_folder else "target"
    for old, new in ((None, "first"), ("first", "second")):
        with replace(path, sync=sync) as temporary:
            assert temporary.parent == path.parent  # a rename never crosses a file system
            fill(temporary, new, is_folder)
            assert contents(path.parent).get(name) == old
        assert contents(path.parent) == {name: new}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("is_written", [False, True])
def test_an_error_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, replace: Replacing, is_folder: bool, error: type[BaseException], is_written: bool
) -> None:
    path = tmp_path / "target"
    with replace(path) as temporary:
        fill(temporary, "old", is_folder)
    before = contents(tmp_path)
    with pytest.raises(error), replace(path) as temporary:
        if is_written:
            fill(temporary, "half", is_folder)
        raise error
    assert contents(tmp_path) == before
    assert [left.name for left in tmp_path.iterdir()] == ["target"]


def test_a_file_that_was_never_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "target"):
        pass
    assert contents(tmp_path) == {"target": "old"}


def test_a_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "target"
    (path / "inside").mkdir(parents=True)
    (path / "inside" / "stale.json").write_text("{}")
    with replacing_folder(path) as temporary:
        (temporary / "fresh.json").write_text("{}")
    assert contents(tmp_path) == {"target/fresh.json": "{}"}
    path = tmp_path / "file"
    path.write_text("in the way")
    with replacing_folder(path) as temporary:
        (temporary / "fresh.json").write_text("{}")
    assert contents(path) == {"fresh.json": "{}"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "data.json").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "data.json").write_text("2")
    assert not (tmp_path / "link").is_symlink()
    assert contents(tmp_path) == {"kept/data.json": "1", "link/data.json": "2"}


def test_an_interrupt_between_the_two_renames_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "target"
    with replacing_folder(path) as temporary:
        fill(temporary, "old", is_folder=True)
    rename = Path.rename

    def interrupted(source: Path, target: Path) -> Path:
        if target == path and "replaced" not in source.name:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_folder(path) as temporary:
        fill(temporary, "new", is_folder=True)
    assert contents(tmp_path) == {"target/model.json": "old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from davae.core.files import replacing, replacing_folder
replace = replacing_folder if sys.argv[2] == "folder" else replacing
with replace(Path(sys.argv[1])) as temporary:
    (temporary / "model.json" if sys.argv[2] == "folder" else temporary).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_one_and_what_a_sweep_finds(
    tmp_path: Path, replace: Replacing, is_folder: bool
) -> None:
    path = tmp_path / "target"
    with replace(path) as temporary:
        fill(temporary, "old", is_folder)
    before = contents(tmp_path)
    kind = "folder" if is_folder else "file"
    answer = subprocess.run([sys.executable, "-c", KILLED, str(path), kind], capture_output=True, check=False)
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert len(list(tmp_path.iterdir())) == 2
    assert before.items() < contents(tmp_path).items()
    sweep(tmp_path)
    assert contents(tmp_path) == before
    assert [left.name for left in tmp_path.iterdir()] == ["target"]


def left_by(process: int, machine: str = platform.node().replace(".", "-"), name: str = "latents") -> str:
    return f".{name}.{machine}.{process}.tmp"


def test_a_sweep_spares_the_living_and_what_others_named(tmp_path: Path) -> None:
    foreign = [".editor.tmp", ".a.b.20260101120000.tmp", left_by(1)[1:], left_by(99999999) + "~"]
    for name in foreign:
        (tmp_path / name).write_text("not ours")
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        running = left_by(other.pid)
        (tmp_path / running).write_text("of a running process")
        with replacing(link / "own") as temporary:
            temporary.write_text("of this process")
            for folder in (tmp_path, link):  # by whatever path it goes
                sweep(folder)
            assert temporary.exists()
        assert {path.name for path in tmp_path.iterdir()} == {"own", running, *foreign}
        other.communicate(b"\n")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"own", *foreign}
    sweep(tmp_path / "nowhere")


def test_a_sweep_knows_what_an_earlier_process_of_the_same_number_left(tmp_path: Path) -> None:
    """A container gives its first process the same number every time."""
    left = tmp_path / left_by(os.getpid(), name="step")
    left.mkdir()
    (left / "half").write_text("")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    left.mkdir()
    (left / "half").write_text("")
    with replacing_folder(tmp_path / "step") as temporary:  # and a writer begins with an empty folder
        assert temporary == left
        assert list(temporary.iterdir()) == []


def test_a_sweep_gives_other_machines_a_day(tmp_path: Path) -> None:
    recent, old = (tmp_path / left_by(99999999, "node-7", name) for name in ("recent", "old"))
    for folder in (recent, old):
        folder.mkdir()
    os.utime(recent, (time.time() - 23 * 3600,) * 2)
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [recent]


def test_relative_paths_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("a.txt"), "\u00e9")
    with replacing_folder(Path("b")) as temporary:
        fill(temporary, "1", is_folder=True)
    sweep(Path())
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9"
    assert contents(tmp_path / "b") == {"model.json": "1"}


def test_a_locked_folder_is_swept_at_every_depth(tmp_path: Path) -> None:
    unfinished = ["run/.a.elsewhere.1.tmp", "run/.b.tmp/part/model.json", "run/deep/.tmpAbC123", "run/deep/.c.7.tmp"]
    kept = ["run/deep/a.tmp", "run/.hidden", "run/deep/.tmp"]
    for name in (*unfinished, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    with replacing(tmp_path / "run" / "mine") as temporary:
        temporary.write_text("being written")
        sweep_below(tmp_path / "run")
    assert set(contents(tmp_path)) == {*kept, "run/mine"}


def blake(*parts: bytes) -> str:
    """What is stored in caches and in run.json."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def test_hashes_are_of_contents(tmp_path: Path) -> None:
    assert text_hash("a prompt") == blake(b"a prompt")
    assert text_hash("\udcff") == blake("\udcff".encode(errors="surrogatepass"))
    first, second = tmp_path / "first.bin", tmp_path / "second.bin"
    first.write_bytes(bytes(range(256)) * 20_000)  # more than one block
    second.write_bytes(first.read_bytes())
    assert file_hash(first) == file_hash(second) == blake(first.read_bytes())
    first.touch()
    assert file_hash(first) == file_hash(second)
    assert file_sha256(first) == hashlib.sha256(first.read_bytes()).hexdigest()


def test_a_file_that_changed_is_read_again_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.json"
    write_text(path, "old")
    stat = path.stat()
    assert file_hash(path) == blake(b"old")
    write_text(path, "new")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size, within one tick of the clock
    assert file_hash(path) == blake(b"new")
    monkeypatch.setattr(files, "_update", lambda *_: pytest.fail("read again"))
    assert file_hash(path) == blake(b"new")


def test_a_folders_hash_is_of_names_and_contents_of_its_model_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    expected = blake(b"model.safetensors", b"weights", b"vae/config.json", b"{}")
    assert folder_hash(folder) == expected
    (folder / "README.md").write_text("of no consequence")
    assert folder_hash(folder) == expected
    assert folder_hash(folder.rename(tmp_path / "elsewhere")) == expected
    folder = tmp_path / "elsewhere"
    write_text(folder / "vae" / "config.json", "[]")
    changed = folder_hash(folder)
    assert changed == blake(b"model.safetensors", b"weights", b"vae/config.json", b"[]")
    (folder / "vae" / "config.json").rename(folder / "vae" / "index.json")
    assert folder_hash(folder) not in (expected, changed)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DAVAE_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DAVAE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "davae"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "davae"


def test_a_linked_folder_has_the_same_files_and_a_life_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one" / "inner").mkdir(parents=True)
    (tmp_path / "one" / "inner" / "weights").write_bytes(b"weights")
    (tmp_path / "one" / "config.json").write_text("{}")
    (tmp_path / "one" / ".half.host.7.tmp").write_text("unfinished")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "old").write_text("replaced")
    link_folder(tmp_path / "one", tmp_path / "other")
    found = {file.relative_to(tmp_path / "other").as_posix() for file in (tmp_path / "other").rglob("*")}
    assert found == {"inner", "inner/weights", "config.json"}
    assert (tmp_path / "other" / "inner" / "weights").samefile(tmp_path / "one" / "inner" / "weights")
    write_text(tmp_path / "one" / "config.json", "changed")
    shutil.rmtree(tmp_path / "one")
    assert (tmp_path / "other" / "config.json").read_text() == "{}"


def test_what_cannot_be_linked_is_copied_and_other_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights").write_bytes(b"weights")
    for number in (errno.EXDEV, errno.ENOSPC):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, "refused")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        target = tmp_path / str(number)
        if number == errno.EXDEV:
            link_folder(tmp_path / "one", target)
            assert (target / "weights").read_bytes() == b"weights"
        else:
            with pytest.raises(OSError, match="refused"):
                link_folder(tmp_path / "one", target)
            assert not target.exists()
