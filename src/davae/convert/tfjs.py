"""Keras weights as TensorFlow.js keeps them: model.json, which lists them, and the files that it names."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from davae.convert.keys import ConversionError


def read_tfjs(path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """(weights by their Keras names, the files that hold them). Convolutions stay [height, width, in, out].

    Raises:
        ConversionError: a file is missing or damaged, or weights are not stored as 32-bit floats.
    """
    try:
        groups = json.loads(path.read_bytes())["weightsManifest"]
        listed = [([path.parent / _local(path, name) for name in g["paths"]], g["weights"]) for g in groups]
        state: dict[str, Tensor] = {}
        for files, weights in listed:
            state |= _group(path, files, weights)
    except FileNotFoundError as error:
        raise ConversionError(f"There is no file {error.filename}, which {path} needs.") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f"{path} lists no weights of TensorFlow.js ({type(error).__name__}).") from None
    return state, [file for files, _ in listed for file in files]


def _local(path: Path, name: str) -> str:
    if Path(name).name != name:
        raise ConversionError(f"{path} names the file {name!r}; allowed are files beside it.")
    return name


def _group(path: Path, files: list[Path], weights: list[Mapping]) -> dict[str, Tensor]:
    data = b"".join(file.read_bytes() for file in files)
    state, start = {}, 0
    for weight in weights:
        if weight["dtype"] != "float32" or "quantization" in weight:
            raise ConversionError(
                f"{path}: {weight['name']} is stored as {weight['dtype']}; allowed is plain float32."
            )
        count = int(np.prod(weight["shape"]))
        if start + 4 * count > len(data):
            raise ConversionError(f"{path}: its weights are cut off at {weight['name']}. Download them again.")
        values = np.frombuffer(data, "<f4", count, start).reshape(weight["shape"])
        state[str(weight["name"])], start = torch.from_numpy(values.copy()), start + 4 * count
    if start != len(data):
        raise ConversionError(f"{path} lists {start} bytes of weights; its files hold {len(data)}.")
    return state
