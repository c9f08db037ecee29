"""One writer a folder: the second hears at once who the first is, and a lock ends with its process."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import BaseFileLock, FileLock

from davae.core.lock import LockedError, locked

HOLDS = """
import os, sys, time
from pathlib import Path
from davae.core.lock import locked
with locked(Path(sys.argv[1]), "Run a"):
    worker = os.fork()  # as of a loader of images: it outlives a killed parent for a while
    if worker:
        print(worker, flush=True)
    time.sleep(20)
"""


def held_elsewhere(lock: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lock, and the number of its worker."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_the_second_hears_at_once_who_the_first_is_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    first, worker = held_elsewhere(lock)
    try:
        started = time.monotonic()
        with pytest.raises(LockedError) as refusal, locked(lock, "Run a"):
            pass
        assert time.monotonic() - started < 1
        for part in ("Run a", f"process {first.pid} on {platform.node()}", "since 2", "Wait", str(lock)):
            assert part in str(refusal.value), part
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    os.kill(worker, 0)
    assert lock.exists()
    with locked(lock, "Run a"):
        os.kill(worker, signal.SIGKILL)
        assert json.loads((tmp_path / "run" / ".lock.json").read_text())["process"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("damage", [None, "", "{}", "null"])
def test_a_holder_that_left_no_word_is_still_one(tmp_path: Path, damage: str | None) -> None:
    with locked(tmp_path / ".lock", "Run a"):
        word = tmp_path / ".lock.json"
        word.unlink() if damage is None else word.write_text(damage)
        with pytest.raises(LockedError, match="by another process"), locked(tmp_path / ".lock", "Run a"):
            pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, None])
def test_a_file_system_without_locks_gets_a_soft_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    def refuse(self: BaseFileLock, *_: Any, **__: Any) -> None:
        raise NotImplementedError if error is None else OSError(error, os.strerror(error))

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    lock = tmp_path / ".lock"
    with (
        locked(lock, "Run a"),
        pytest.raises(LockedError, match=f"process {os.getpid()} .*remove {lock}"),
        locked(lock, "Run a"),
    ):
        pass
    with locked(tmp_path / ".lock", "Run a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run on a read-only disk is passed over as everywhere."""

    def refuse(self: BaseFileLock, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with locked(tmp_path / ".lock", "Run a"):
        assert list(tmp_path.iterdir()) == []
