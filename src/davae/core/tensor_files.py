"""Safetensors files that carry the checksum of their tensors, and are not read where it is another."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from davae.core.files import DIGEST_SIZE, Stamp, stamp, text_hash
from davae.core.state import parse_json

_ENTRY = "davae"  # of the metadata: several would be written in any order. Files of others have none


@dataclass(frozen=True)
class _Entry:
    metadata: dict[str, str]
    checksum: str


class DamagedFileError(ValueError):
    """A file of tensors is not what was written."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with the checksum of its tensors.

    Raises:
        OSError: it cannot be written.
        SafetensorError: likewise.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    entry = {"metadata": dict(metadata or {}), "checksum": checksum(stored, metadata or {})}
    save_file(stored, path, {_ENTRY: json.dumps(entry, sort_keys=True)})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, in memory.

    Raises:
        DamagedFileError: the file is cut off, or its checksum is another.
        FileNotFoundError: there is none.
    """
    tensors, _ = _opened(path)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def metadata_of(path: Path) -> dict[str, str]:
    """What was written into a file beside its tensors, which are read and compared with their checksum.

    Raises:
        DamagedFileError: the file is cut off, or its checksum is another.
        FileNotFoundError: there is none.
    """
    _, metadata = _opened(path)
    return metadata


def is_whole(path: Path) -> bool:
    """Whether a file is there and what was written. It is read once a process."""
    try:
        return _is_whole(path, stamp(path))
    except FileNotFoundError:
        return False


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Hex hash of tensors on the CPU (names, shapes, dtypes, contents), on several threads, and of metadata."""
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(tensors, threads.map(_digest, tensors.values()), strict=True))
    return text_hash(json.dumps([digests, dict(metadata)], sort_keys=True))


@lru_cache(maxsize=4096)
def _is_whole(path: Path, _: Stamp) -> bool:
    try:
        metadata_of(path)
    except DamagedFileError:
        return False
    return True


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, which stay in the file, and metadata; both compared with their checksum."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            found = file.metadata() or {}
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if _ENTRY not in found:
        return tensors, found
    try:
        entry = parse_json(path, json.loads(found[_ENTRY]), _Entry, "")
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if entry.checksum != checksum(tensors, entry.metadata):
        raise DamagedFileError(f"{path} is damaged: its contents are not those that were written")
    return tensors, entry.metadata


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=DIGEST_SIZE)
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
