"""Arrays of an npz on the disk, read where they lie: nothing is unpickled, and memory holds what is looked at."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from davae.data.errors import DataError

_BLOCK = 1 << 22  # bytes unpacked at once
_DAMAGE = (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError)


def array_names(path: Path) -> list[str]:
    """Names of the arrays of an npz.

    Raises:
        DataError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except _DAMAGE as error:
        raise DataError(
            f"cannot read {path}: got {error}; allowed is a whole npz; fetch or write it again"
        ) from error


def read_array(path: Path, name: str) -> NDArray[Any]:
    """An array, read-only, mapped into memory. A compressed one is unpacked into a file without a name first.

    Raises:
        DataError: there is no such array, it is damaged, or it holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as stream:
                version = npy.read_magic(stream)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, in_columns, dtype = read_header(stream)
                if dtype.hasobject:
                    raise ValueError("Python objects")
                order: Any = "F" if in_columns else "C"
                if 0 in shape:
                    return np.empty(shape, dtype, order)
                if member.compress_type == zipfile.ZIP_STORED:
                    return np.memmap(path, dtype, "r", _offset(path, member) + stream.tell(), shape, order)
                unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the array on it
                while block := stream.read(_BLOCK):
                    unpacked.write(block)
                unpacked.flush()
                return np.memmap(unpacked, dtype, "r", 0, shape, order)
    except _DAMAGE as error:
        raise DataError(
            f"cannot read array {name} of {path}: got {error}; allowed is a whole array of numbers; "
            "fetch or write the file again"
        ) from error


def _offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: behind its local header, whose lengths are its own."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return member.header_offset + 30 + name + extra
