"""Files of super-resolution networks: RRDBNet in its three layouts, SRVGGNetCompact, and esrgan-slim's dense network.

The file's own keys say which network it is, and of which size. Every one of them has to find its place.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from davae.convert.keys import ConversionError, fit, shape_of, some
from davae.convert.ncnn import Graph, read_ncnn
from davae.convert.tfjs import read_tfjs
from davae.convert.unpickle import read_content
from davae.core.files import file_sha256
from davae.models.upscalers.compact import SRVGGNetCompact
from davae.models.upscalers.network import UpscalingNetwork
from davae.models.upscalers.residual_dense import ResidualDenseNet
from davae.models.upscalers.rrdb import CONVOLUTIONS, DENSE_BLOCKS, RRDBNet

State = Mapping[str, Tensor]
Names = dict[str, str]
"""Key of the file -> key of the model."""
_CONTAINERS = ("params_ema", "params", "state_dict")
"""Under which trainers keep weights; the average first."""
_PARALLEL = "module."
_UNSHUFFLES = {3: 1, 12: 2, 48: 4}
"""Channels that the first convolution takes -> pixels a side that are folded into them."""


@dataclass(frozen=True)
class NetworkFile:
    """A network, and the files that it came from.

    Args:
        network: in eval mode, float32.
        layout: of the file's keys.
        checksums: name -> SHA-256 of each file.
    """

    network: UpscalingNetwork
    layout: str
    checksums: Mapping[str, str]


def load_network(path: Path) -> NetworkFile:
    """Read a network: .safetensors, .pth (tensors alone are unpickled), ncnn's .param, TensorFlow.js's .json, .npz.

    Raises:
        ConversionError: the file is missing or damaged, or it holds another network; its keys are named then.
    """
    state, files = _read(path)
    for layout, (is_of, build) in LAYOUTS.items():
        if is_of(state):
            try:
                model, names = build(state)
                network, _ = fit(layout, model, state, names, dropped={})
            except ConversionError as error:
                raise ConversionError(f"Cannot load {path}. {error}") from None
            return NetworkFile(network.float(), layout, {file.name: file_sha256(file) for file in files})
    raise ConversionError(
        f"{path} holds another network; its keys: {some(list(state)) or 'none'}. Known here are "
        f"{', '.join(LAYOUTS)}; others load as spandrel:{path}, where spandrel is installed."
    )


def _read(path: Path) -> tuple[State, list[Path]]:
    if not path.is_file():
        raise ConversionError(f"There is no file {path}.")
    if path.suffix == ".param":
        return _named(path, read_ncnn(path)), [path.with_suffix(".bin")]
    if path.suffix == ".json":
        state, files = read_tfjs(path)
        return _from_keras(state), files
    if path.suffix == ".npz":
        return _from_keras(_read_npz(path)), [path]
    content: Mapping = read_content(path)
    inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ConversionError(f"{path} has no weights; its entries: {some([str(key) for key in content]) or 'none'}.")
    if all(key.startswith(_PARALLEL) for key in tensors):
        tensors = {key.removeprefix(_PARALLEL): value for key, value in tensors.items()}
    return tensors, [path]


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, TypeError, AttributeError) as error:
        raise ConversionError(f"{path} is no readable archive of plain arrays: {error}.") from None


def _from_keras(state: State) -> dict[str, Tensor]:
    """NAME/kernel [height, width, in, out] and NAME/bias, as a convolution of torch has them."""
    renamed = {}
    for key, value in state.items():
        name, _, kind = key.rpartition("/")
        if kind == "kernel" and value.ndim == 4:
            renamed[f"{name}.weight"] = value.permute(3, 2, 0, 1)
        else:
            renamed[f"{name}.{kind}" if name else key] = value
    return renamed


def _named(path: Path, graph: Graph) -> dict[str, Tensor]:
    """ncnn's nameless weights under the names of Real-ESRGAN's files, by their order."""
    layers = graph.layers
    if any(layer.kind == "PReLU" for layer in layers):
        names = [f"body.{index}" for index in range(len(layers))]
    else:
        doublings = graph.kinds.count("Interp")
        blocks, rest = divmod(len(layers) - doublings - 4, DENSE_BLOCKS * CONVOLUTIONS)
        if rest or blocks < 1:
            kinds = ", ".join(dict.fromkeys(graph.kinds))
            raise ConversionError(f"{path} has {len(layers)} layers with weights ({kinds}), as no RRDBNet has.")
        dense = [
            f"body.{block}.rdb{rdb + 1}.conv{index + 1}"
            for block in range(blocks)
            for rdb in range(DENSE_BLOCKS)
            for index in range(CONVOLUTIONS)
        ]
        ups = [f"conv_up{index + 1}" for index in range(doublings)]
        names = ["conv_first", *dense, "conv_body", *ups, "conv_hr", "conv_last"]
    state = {}
    for name, layer in zip(names, layers, strict=True):
        state[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias
    return state


def _build_rrdb(state: State, names: Names) -> tuple[UpscalingNetwork, Names]:
    """The network whose keys these are, once they are called as in Real-ESRGAN's files."""
    new = {name: key for key, name in names.items()}

    def size(name: str) -> tuple[int, ...]:
        return shape_of(state, new.get(f"{name}.weight", f"{name}.weight"))

    features, inputs = size("conv_first")[:2]
    outputs, growth = size("conv_last")[0], size("body.0.rdb1.conv1")[0]
    if inputs not in _UNSHUFFLES or outputs != 3:
        raise ConversionError(
            f"This RRDBNet takes {inputs} channels and makes {outputs}; allowed are 3, 12 or 48, and 3 (RGB)."
        )
    blocks = _count(new, r"body\.(\d+)\.rdb1\.conv1\.weight")
    doublings, unshuffle = _count(new, r"conv_up(\d+)\.weight"), _UNSHUFFLES[inputs]
    if 2**doublings < unshuffle:
        raise ConversionError(
            f"This RRDBNet folds {unshuffle} pixels a side and doubles {doublings} times: it shrinks."
        )
    with torch.device("meta"):
        return RRDBNet(blocks, features, growth, doublings, unshuffle), names


def _count(names: Mapping[str, str], pattern: str) -> int:
    """Different numbers in the keys of this pattern."""
    return len({match[1] for name in names if (match := re.fullmatch(pattern, name))})


def _rrdb(state: State) -> tuple[UpscalingNetwork, Names]:
    return _build_rrdb(state, {key: key for key in state})


def _rrdb_trunk(state: State) -> tuple[UpscalingNetwork, Names]:
    def renamed(key: str) -> str:
        key = re.sub(r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2.", key)
        key = re.sub(r"^upconv(\d)\.", r"conv_up\1.", key)
        return re.sub(r"^trunk_conv\.", "conv_body.", re.sub(r"^HRconv\.", "conv_hr.", key))

    return _build_rrdb(state, {key: renamed(key) for key in state})


def _rrdb_numbered(state: State) -> tuple[UpscalingNetwork, Names]:
    """The first files: layers numbered as in a sequence, in which convolutions that double stand at 3, 6, ..."""
    last = max((int(match[1]) for key in state if (match := re.match(r"model\.(\d+)\.weight", key))), default=0)
    doublings = (last - 4) // 3
    numbers = {"0": "conv_first", str(last - 2): "conv_hr", str(last): "conv_last"}
    numbers |= {str(3 * index): f"conv_up{index}" for index in range(1, doublings + 1)}
    names = {}
    for key in state:
        block = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)", key)
        body = re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", key)
        layer = re.fullmatch(r"model\.(\d+)\.(weight|bias)", key)
        if block:
            names[key] = f"body.{block[1]}.rdb{block[2]}.conv{block[3]}.{block[4]}"
        elif body:
            names[key] = f"conv_body.{body[1]}"
        elif layer and layer[1] in numbers:
            names[key] = f"{numbers[layer[1]]}.{layer[2]}"
        else:
            names[key] = key  # unexpected, which `fit` will say
    return _build_rrdb(state, names)


def _compact(state: State) -> tuple[UpscalingNetwork, Names]:
    features, inputs = shape_of(state, "body.0.weight")[:2]
    last = max(int(match[1]) for key in state if (match := re.fullmatch(r"body\.(\d+)\.weight", key)))
    outputs = shape_of(state, f"body.{last}.weight")[0]
    scale = math.isqrt(outputs // 3)
    if inputs != 3 or outputs != 3 * scale**2:
        raise ConversionError(
            f"This SRVGGNetCompact takes {inputs} channels and makes {outputs} a pixel; allowed are 3 (RGB), and "
            f"3 times a square."
        )
    with torch.device("meta"):
        return SRVGGNetCompact((last - 2) // 2, features, scale), {key: key for key in state}


def _residual_dense(state: State) -> tuple[UpscalingNetwork, Names]:
    features, (outputs, *_) = shape_of(state, "F_m1.weight")[0], shape_of(state, "UPN3.weight")
    blocks = _count({key: key for key in state}, r"LFF_(\d+)\.weight")
    convolutions = _count({key: key for key in state}, r"F_1_(\d+)\.weight")
    growth = shape_of(state, "F_1_1.weight")[0]
    with torch.device("meta"):
        model = ResidualDenseNet(blocks, convolutions, growth, features, math.isqrt(outputs // 3))
    return model, {key: f"layers.{key}" for key in state}


def _is_compact(state: State) -> bool:
    return all(f"body.{index}.weight" in state for index in range(3)) and state["body.1.weight"].ndim == 1


LAYOUTS: dict[str, tuple[Callable[[State], bool], Callable[[State], tuple[UpscalingNetwork, Names]]]] = {
    "RRDBNet (Real-ESRGAN)": (lambda state: "body.0.rdb1.conv1.weight" in state, _rrdb),
    "RRDBNet (RRDB_trunk)": (lambda state: "RRDB_trunk.0.RDB1.conv1.weight" in state, _rrdb_trunk),
    "RRDBNet (ESRGAN)": (lambda state: "model.1.sub.0.RDB1.conv1.0.weight" in state, _rrdb_numbered),
    "SRVGGNetCompact": (_is_compact, _compact),
    "ResidualDenseNet (esrgan-slim)": (
        lambda state: "F_m1.weight" in state and "UPN3.weight" in state,
        _residual_dense,
    ),
}
"""Layout -> (whether these keys are of it, how the network is made of them)."""
