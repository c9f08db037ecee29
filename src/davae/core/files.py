"""Owner of how files come to be: whole or not at all, and told apart by their contents.

A file or folder is written beside its place under a temporary name, `.NAME.MACHINE.PID.tmp`, and renamed when it is
complete. `sweep` removes what processes left under such names when they were killed.
"""

import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

DIGEST_SIZE = 16
"""Bytes of a content hash (BLAKE2b)."""
SEAL = "checksums.json"
"""Name of the file in a folder of saved models that holds the checksums of its weights."""
_BLOCK = 1 << 22  # bytes read at once
_MODEL_SUFFIXES = (".json", ".safetensors")
_MACHINE = platform.node().replace(".", "-") or "unknown"
_TEMPORARY = re.compile(r"\..+\.([^.]+)\.(\d{1,9})\.tmp")  # no process has a number of ten digits
_UNFINISHED = re.compile(r"\..+\.tmp|\.tmp[A-Za-z0-9]+")  # ours and safetensors'
_WITHOUT_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_FOREIGN_AGE = 24 * 3600.0  # seconds
_open: set[Path] = set()  # what this process is writing

Stamp = tuple[int, ...]
"""What differs where the contents of a file do: device, inode, size, times of the last change and of the inode's."""


@contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """A temporary path to write a file to; it takes the place of `path` when the block ends without an error.

    Args:
        path: of the file; its folder is made where it does not exist.
        sync: whether the bytes are on the disk before the name is.
    """
    with _temporary(path) as temporary:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)


@contextmanager
def replacing_folder(path: Path, sync: bool = False) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of the folder `path` when the block ends without an error.

    Args:
        path: of the folder; what stands there is removed, never in part: it is renamed first.
        sync: whether the bytes of its files are on the disk before its name is.
    """
    with _temporary(path) as temporary, _temporary(path, "replaced.") as replaced:
        temporary.mkdir()
        yield temporary
        if sync:
            for file in temporary.rglob("*"):
                _sync(file)
        try:
            if os.path.lexists(path):
                path.rename(replaced)
            temporary.rename(path)
        finally:
            if replaced.exists() and not path.exists():  # interrupted in between
                replaced.rename(path)


def link_folder(source: Path, target: Path) -> None:
    """The files of a folder in another one too, without a second copy of their bytes; whole or not at all.

    Neither depends on the other afterwards: what is written here takes the place of a name, never of bytes. Where the
    file system cannot link, they are copied.
    """
    with replacing_folder(target) as folder:
        for file in sorted(source.rglob("*")):
            place = folder / file.relative_to(source)
            if file.is_dir():
                place.mkdir(exist_ok=True)
            elif not _UNFINISHED.fullmatch(file.name):
                _link(file, place)


def sweep(folder: Path) -> None:
    """Remove what processes that are gone have left in a folder; it need not exist.

    Other machines cannot be asked for their processes: what they left is removed after a day without a change.
    """
    for path in folder.resolve().glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process may be sweeping too
            if path not in _open and _is_left(path):
                _remove(path)


def sweep_below(folder: Path) -> None:
    """Remove all unfinished files at any depth of a folder that this process alone writes, whoever left them."""
    for root, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(root, name)
            if _UNFINISHED.fullmatch(name) and path.resolve() not in _open:
                _remove(path)
                if name in folders:
                    folders.remove(name)


def write_text(path: Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def text_hash(text: str) -> str:
    """Hex hash of a text; bytes of file names that are no text count as they are."""
    return text_digest(text).hex()


def text_digest(text: str) -> bytes:
    """The bytes of `text_hash`."""
    return bytes_digest(text.encode(errors="surrogatepass"))


def bytes_digest(data: bytes) -> bytes:
    """Hash of bytes in memory, that of `file_hash` for the same bytes."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def file_hash(path: Path) -> str:
    """Hex hash of a file's contents. An unchanged file is read once a process."""
    return _file_hash(path, stamp(path))


def stamp(path: Path) -> Stamp:
    """What changes with whatever is done to a file. Nothing but a decaying disk escapes it."""
    stat = path.stat()
    # The inode, because a replaced file may have the size and, on a coarse clock, the time of the old one; the time
    # of its change, because the other one can be set.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's contents, the one that model hubs list."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_hash(path: Path) -> str:
    """Hex hash of a saved model: names and contents of its JSON and safetensors files. Read once a process.

    The checksums beside them follow from them, and are left out.
    """
    return _folder_hash(path, tuple((file, stamp(file)) for file in model_files(path)))


def model_files(path: Path) -> list[Path]:
    """The JSON and safetensors files of a saved model, in order, but for their checksums."""
    files = sorted(path.rglob("*"))
    return [file for file in files if file.suffix in _MODEL_SUFFIXES and file.name != SEAL and file.is_file()]


def cache_folder() -> Path:
    """Folder for what can be made or fetched again; need not exist.

    `$DAVAE_CACHE`, else `$XDG_CACHE_HOME/davae`, else `~/.cache/davae`.

    Raises:
        RuntimeError: none of the variables is set, and this user has no home.
    """
    if configured := os.environ.get("DAVAE_CACHE"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "davae"


@lru_cache(maxsize=1024)
def _file_hash(path: Path, _: Stamp) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    _update(digest, path)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _folder_hash(root: Path, files: tuple[tuple[Path, Stamp], ...]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for file, _ in files:
        digest.update(os.fsencode(file.relative_to(root)))
        _update(digest, file)
    return digest.hexdigest()


def _update(digest: hashlib.blake2b, path: Path) -> None:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)


@contextmanager
def _temporary(path: Path, role: str = "") -> Iterator[Path]:
    """A free name beside `path`, in a folder that exists; what is left under it in the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent.resolve() / f".{path.name}.{role}{_MACHINE}.{os.getpid()}.tmp"
    _remove(temporary)  # of a killed process that had the same number
    _open.add(temporary)
    try:
        yield temporary
    finally:
        _open.discard(temporary)
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_left(path: Path) -> bool:
    """Whether a path is a temporary one whose process is gone."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    if match[1] != _MACHINE:
        return time.time() - path.lstat().st_mtime > _FOREIGN_AGE
    process = int(match[2])
    if process == os.getpid():  # of an earlier one: a container gives its first process the same number every time
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _link(file: Path, place: Path) -> None:
    try:
        place.hardlink_to(file)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        shutil.copy2(file, place)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
