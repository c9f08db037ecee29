"""Files in: tensors of a checkpoint, latent statistics. Nothing that a pickle asks for is ever executed."""

import json
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from davae.convert.keys import ConversionError, some
from davae.core.files import file_sha256

Content = Mapping[Any, object]
"""Of a file: its entries by their keys."""
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SAFE = ".safetensors"
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What torch's restricted unpickler raises on foreign and damaged files."""


@dataclass(frozen=True)
class Source:
    """A checkpoint as read.

    Args:
        path: of the file.
        tensors: its weights, by their own names.
        dropped: what is no weight (step counters, optimizer states), with the reason.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    dropped: Mapping[str, str]

    def fingerprint(self) -> dict[str, str]:
        """Name and SHA-256 of the file, as model hubs list it."""
        return {"file": self.path.name, "sha256": file_sha256(self.path)}


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every latent channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def part(self, start: int, stop: int) -> "Statistics":
        """The channels from `start` to before `stop`."""
        return Statistics(self.mean[start:stop], self.std[start:stop])


def read_source(path: Path) -> Source:
    """Read a checkpoint: safetensors, or a pickle of tensors (flat, or under `state_dict` as Lightning writes).

    Raises:
        ConversionError: the file is missing, damaged, of another format, or a pickle that is more than tensors.
    """
    content = read_content(path)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        return source_of(path, content)
    return source_of(path, state, {str(key): "state of a training" for key in content if key != "state_dict"})


def source_of(path: Path, content: Content, dropped: Mapping[str, str] | None = None) -> Source:
    """The tensors among these entries of a file.

    Args:
        path: of the file.
        content: entries that may be weights.
        dropped: other entries of the file, with the reason.

    Raises:
        ConversionError: there is no tensor.
    """
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ConversionError(f"{path} has no weights; its entries: {some([str(key) for key in content]) or 'none'}.")
    others = {str(key): "not a tensor" for key in content if key not in tensors}
    return Source(path, tensors, {**(dropped or {}), **others})


def read_statistics(path: Path) -> Statistics:
    """Read {mean, std} of latent channels, [K] or [1, K, 1, 1] each, from JSON, safetensors or a pickle of tensors.

    Raises:
        ConversionError: entries are missing, of other shapes, not finite, or a deviation is not positive.
    """
    content = _read_json(path) if path.suffix == ".json" else read_content(path)
    if not isinstance(content, Mapping) or not {"mean", "std"} <= set(content):
        raise ConversionError(f"{path} holds no latent statistics; expected the entries 'mean' and 'std'.")
    mean, std = (_channels(path, name, content[name]) for name in ("mean", "std"))
    if len(mean) != len(std) or min(std) <= 0:
        raise ConversionError(
            f"{path}: 'mean' and 'std' must have one entry a channel, deviations positive; "
            f"got {len(mean)} means, {len(std)} deviations, the least {min(std)}."
        )
    return Statistics(mean, std)


def _channels(path: Path, name: str, values: object) -> tuple[float, ...]:
    try:
        tensor = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConversionError(f"{path}: '{name}' is no list of numbers ({error}).") from None
    if tensor.numel() == 0 or tensor.numel() != max(tensor.shape, default=0):
        raise ConversionError(f"{path}: '{name}' has shape {list(tensor.shape)}; allowed: [K], [1, K, 1, 1].")
    if not torch.isfinite(tensor).all():
        raise ConversionError(f"{path}: '{name}' is not finite.")
    return tuple(tensor.flatten().tolist())


def read_content(path: Path) -> Content:
    """What a file holds, tensors and plain values: safetensors, or a pickle that is allowed to build nothing else."""
    if not path.is_file():
        raise ConversionError(f"There is no file {path}.")
    if path.suffix == SAFE:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ConversionError(f"{path} is no readable safetensors file: {error}. Download it again.") from None
    if path.suffix not in PICKLES:
        raise ConversionError(f"Cannot read {path}; known file types: {', '.join((*PICKLES, SAFE))}.")
    return _read_pickle(path)


def _read_json(path: Path) -> object:
    if not path.is_file():
        raise ConversionError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON: {error}.") from None


def _read_pickle(path: Path) -> Content:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        refused = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused is not None:
            raise ConversionError(
                f"Refused {path}: reading this pickle would run {refused[1]}, and a pickle can run anything. "
                f"Get the weights as safetensors, or ask for a clean state dict: a plain dict of tensors."
            ) from None
        raise ConversionError(
            f"Refused {path}: it is no plain pickle of tensors, or it is damaged ({type(error).__name__}). "
            f"Download it again, or get the weights as safetensors or as a clean state dict."
        ) from None
    if not isinstance(content, Mapping):
        raise ConversionError(f"{path} holds a {type(content).__name__}; expected a dict of tensors (a state dict).")
    return content
