"""Safetensors files that carry the checksum of their tensors, and are not read where it is another."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from davae.core.files import DIGEST_SIZE

_CHECKSUM = "checksum"  # in the metadata; files of earlier versions, and of others, have none


class DamagedFileError(ValueError):
    """A file of tensors is not what was written."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the checksum of its tensors.

    Raises:
        OSError: it cannot be written.
        SafetensorError: likewise.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, path, {**(metadata or {}), _CHECKSUM: checksum(stored)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory.

    Raises:
        DamagedFileError: the file is cut off, or its checksum is another.
        FileNotFoundError: there is none.
    """
    tensors, metadata = _opened(path)
    _expect(path, tensors, metadata)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def metadata_of(path: Path) -> dict[str, str]:
    """What was written into a file beside its tensors, which are read and compared with their checksum.

    Raises:
        DamagedFileError: the file is cut off, or its checksum is another.
        FileNotFoundError: there is none.
    """
    tensors, metadata = _opened(path)
    _expect(path, tensors, metadata)
    return metadata


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Hex hash of names, shapes, dtypes and contents of tensors on the CPU, on several threads."""
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_digest, tensors.values())
        rows = sorted(zip(tensors, digests, strict=True))
    return hashlib.blake2b(repr(rows).encode(), digest_size=DIGEST_SIZE).hexdigest()


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that stay in the file, and metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def _expect(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    written = metadata.get(_CHECKSUM)
    if written is not None and written != checksum(tensors):
        raise DamagedFileError(f"{path} is damaged: its contents are not those that were written")


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=DIGEST_SIZE)
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
