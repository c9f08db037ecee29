"""Whether a kept image, or a file of many, is whole: what a kill, a full disk or a bit that flips leaves is not."""

import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from struct import error as StructError
from typing import IO

from PIL import Image

from davae.core import tensor_files
from davae.core.files import Stamp, stamp

SUFFIXES = (".png", ".jpg", ".tar", ".npz", ".safetensors")
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, StructError, zlib.error)


def is_whole(path: Path) -> bool:
    """Whether a file of one of the `SUFFIXES` is there and whole. It is read once a process.

    A PNG, an npz and a safetensors file carry checksums; a JPEG is known to be complete.
    """
    try:
        return _is_whole(path, stamp(path))
    except FileNotFoundError:
        return False


@lru_cache(maxsize=1 << 17)
def _is_whole(path: Path, _: Stamp) -> bool:
    if path.suffix == ".safetensors":
        return tensor_files.is_whole(path)
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.suffix == ".tar":
            return _is_whole_tar(path)
        with path.open("rb") as file:
            _read_image(file)
    except (*_DAMAGE, zipfile.BadZipFile, tarfile.TarError):
        return False
    return True


def _is_whole_tar(path: Path) -> bool:
    with tarfile.open(path, "r:") as tar:
        members = tar.getmembers()
        for member in members:
            if member.name.endswith((".png", ".jpg")):
                file = tar.extractfile(member)
                assert file is not None
                _read_image(file)
        end = members[-1].offset_data + -(-members[-1].size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    with path.open("rb") as stream:  # a tar ends with blocks of zeros, and tarfile does not ask for them
        stream.seek(end)
        return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _read_image(file: IO[bytes]) -> None:
    with Image.open(file) as image:
        if image.format == "PNG":
            image.verify()  # every checksum in it, and no pixel decoded
        else:
            image.load()
