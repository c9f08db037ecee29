"""Weights for the FID Inception that follow from key names and shapes alone: no test needs the public file."""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from davae.models.inception import InceptionFID


def inception_weights() -> dict[str, Tensor]:
    """The 566 tensors as the reference evaluators had them when the golden vectors were made."""
    return {key: _tensor(key, shape) for key, shape in inception_shapes().items()}


def inception_shapes() -> Mapping[str, tuple[int, ...]]:
    """Of the public file, found by building the network without numbers."""
    network = InceptionFID.__new__(InceptionFID)
    torch.nn.Module.__init__(network)
    with torch.device("meta"):
        network._build()
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            shapes[f"{name}.conv.weight"] = tuple(module.weight.shape)
            for part in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn.{part}"] = (module.out_channels,)
            shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes


def _tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    integers = _hash(zlib.crc32(key.encode()), int(np.prod(shape)))
    if key == "fc.weight" or key.endswith("conv.weight"):
        rows = integers.reshape(shape[0], -1).astype(np.float64)
        gain = 8 if key == "fc.weight" else 2.75
        n = rows.shape[1]
        values = ((rows - rows.sum(axis=1, keepdims=True) / n) / 2**23) * (gain / np.sqrt(n))
    else:
        uniform = (2 * integers.astype(np.float64) + 1) / 2**24 - 1
        kind = key.rpartition(".")[2]
        values = {
            "weight": 1 + uniform / 4,
            "bias": uniform / (2 if key == "fc.bias" else 4),
            "running_mean": uniform / 4,
            "running_var": 1 + uniform / 2,
        }[kind]
    return torch.from_numpy(values.reshape(shape).astype(np.float32))


def _hash(seed: int, count: int) -> NDArray[np.uint32]:
    """Integers of 24 bits."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x >> np.uint32(8)
