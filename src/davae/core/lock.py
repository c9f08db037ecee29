"""One writer a folder: a lock that ends with its process, and beside it a file that says whose it is."""

import errno
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from davae.core.state import found_json, write_json

_WITHOUT_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class LockedError(ValueError):
    """Another process writes there."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    process: int
    since: str
    command: str

    @classmethod
    def this(cls) -> "Holder":
        """This process, from now on."""
        return cls(platform.node(), os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S"), shlex.join(sys.argv))

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since} ({self.command})"


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Be the only process that writes something, or learn at once who is.

    A process that ends in whatever way leaves no lock. Where a folder cannot be written there is nothing to lock.

    Args:
        lock: file that stands for it, there while this block runs; its folder is made where it does not exist.
        what: is written, to begin a sentence with: "Run a", "Folder b".

    Raises:
        LockedError: another process holds the lock.
    """
    try:
        guard = _acquired(lock, what)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        guard = None
    if guard is None:
        yield
        return
    holder = _holder_file(lock)
    try:
        with suppress(OSError):  # on a full disk the lock holds without it
            write_json(holder, asdict(Holder.this()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        with suppress(OSError):  # while it is held: who opened it before finds it gone, and tries again
            lock.unlink()
        guard.release()


def _acquired(lock: Path, what: str) -> BaseFileLock:
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _acquire(FileLock(lock), lock, what)
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _WITHOUT_FLOCK:
            raise
    return _acquire(SoftFileLock(lock), lock, what)  # some network file systems; its file names its process


def _acquire(guard: BaseFileLock, lock: Path, what: str) -> BaseFileLock:
    try:
        guard.acquire(blocking=False)
    except Timeout:
        holder = found_json(_holder_file(lock), Holder)
        is_soft = isinstance(guard, SoftFileLock)  # of a machine that died, nothing else tells
        raise LockedError(
            f"{what} is being written by {holder or 'another process'}. Wait for it or stop it, or take another name."
            + (f" If it is gone, remove {lock}." if is_soft else "")
        ) from None
    return guard


def _holder_file(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")
