"""Files of super-resolution networks in every layout: the same network comes back, and others are named."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import assert_close
from davae.convert.from_esrgan import load_network
from davae.convert.keys import ConversionError
from davae.models.upscalers.compact import SRVGGNetCompact
from davae.models.upscalers.network import UpscalingNetwork
from davae.models.upscalers.residual_dense import ResidualDenseNet
from davae.models.upscalers.rrdb import RRDBNet

IMAGES = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def rrdb(doublings: int = 2, unshuffle: int = 1) -> RRDBNet:
    return RRDBNet(2, 4, 2, doublings, unshuffle)


def state_of(network: UpscalingNetwork) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@torch.no_grad()
def assert_loads(path: Path, network: UpscalingNetwork, layout: str, tolerance: float = 0.0) -> None:
    found = load_network(path)
    assert found.layout == layout
    assert found.network.geometry == network.geometry
    assert_close(found.network(IMAGES), network(IMAGES), max(tolerance, 1e-6))


def trunk_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names of BasicSR's first ESRGAN files."""
    swaps = {
        "conv_body": "trunk_conv",
        "conv_up": "upconv",
        "conv_hr": "HRconv",
        ".rdb": ".RDB",
        "body.": "RRDB_trunk.",
    }
    renamed = {}
    for key, value in state.items():
        for old, new in swaps.items():
            key = key.replace(old, new)
        renamed[key] = value
    return renamed


def numbered_keys(state: dict[str, Tensor], doublings: int) -> dict[str, Tensor]:
    """Under the names of the first ESRGAN files, whose layers are numbered."""
    places = {"conv_first": "model.0", "conv_body": "model.1.sub.2"}
    places |= {f"conv_up{index}": f"model.{3 * index}" for index in range(1, doublings + 1)}
    places |= {"conv_hr": f"model.{3 * doublings + 2}", "conv_last": f"model.{3 * doublings + 4}"}
    renamed = {}
    for key, value in state.items():
        name, _, kind = key.rpartition(".")
        if name.startswith("body."):
            _, block, rdb_name, conv = name.split(".")
            name = f"model.1.sub.{block}.{rdb_name.upper()}.{conv}.0"
        renamed[f"{places.get(name, name)}.{kind}"] = value
    return renamed


@pytest.mark.parametrize(("doublings", "unshuffle"), [(2, 1), (2, 2), (2, 4), (1, 1), (3, 1)])
def test_real_esrgan_files_of_every_scale(tmp_path: Path, doublings: int, unshuffle: int) -> None:
    network = rrdb(doublings, unshuffle)
    save_file(state_of(network), tmp_path / "x.safetensors")
    assert_loads(tmp_path / "x.safetensors", network, "RRDBNet (Real-ESRGAN)")


@pytest.mark.parametrize("container", ["params_ema", "params", "state_dict", None])
def test_pickles_of_tensors_flat_or_as_trainers_write_them(tmp_path: Path, container: str | None) -> None:
    network, other = rrdb(), rrdb()
    state = state_of(network)
    content = state if container is None else {container: state}
    if container == "params_ema":
        content["params"] = state_of(other)  # what the average was made of
    torch.save(content, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", network, "RRDBNet (Real-ESRGAN)")


def test_weights_of_a_parallel_training_and_in_half_precision(tmp_path: Path) -> None:
    network = rrdb().half().float()
    torch.save({f"module.{key}": value.half() for key, value in state_of(network).items()}, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", network, "RRDBNet (Real-ESRGAN)")


def test_older_names_of_the_same_layers(tmp_path: Path) -> None:
    network = rrdb()
    torch.save(trunk_keys(state_of(network)), tmp_path / "trunk.pth")
    assert_loads(tmp_path / "trunk.pth", network, "RRDBNet (RRDB_trunk)")
    for doublings in (0, 1, 2):
        network = rrdb(doublings)
        torch.save(numbered_keys(state_of(network), doublings), tmp_path / "numbered.pth")
        assert_loads(tmp_path / "numbered.pth", network, "RRDBNet (ESRGAN)")


def test_the_compact_network(tmp_path: Path) -> None:
    for scale in (1, 2, 4):
        network = SRVGGNetCompact(2, 4, scale)
        torch.save({"params": state_of(network)}, tmp_path / "x.pth")
        assert_loads(tmp_path / "x.pth", network, "SRVGGNetCompact")


def keras_state(network: ResidualDenseNet) -> dict[str, np.ndarray]:
    """NAME/kernel [height, width, in, out] and NAME/bias."""
    state = {}
    for key, value in network.state_dict().items():
        name, kind = key.removeprefix("layers.").split(".")
        array = value.permute(2, 3, 1, 0) if kind == "weight" else value
        state[f"{name}/{'kernel' if kind == 'weight' else 'bias'}"] = array.contiguous().numpy()
    return state


def write_tfjs(folder: Path, state: dict[str, np.ndarray]) -> Path:
    """model.json, and two files that hold the weights end to end."""
    data = b"".join(array.astype("<f4").tobytes() for array in state.values())
    (folder / "a.bin").write_bytes(data[:100])
    (folder / "b.bin").write_bytes(data[100:])
    weights = [{"name": name, "shape": list(array.shape), "dtype": "float32"} for name, array in state.items()]
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": weights}]
    (folder / "model.json").write_text(json.dumps({"format": "layers-model", "weightsManifest": manifest}))
    return folder / "model.json"


def test_keras_weights_of_tensorflow_js_and_as_arrays(tmp_path: Path) -> None:
    network = ResidualDenseNet(2, 2, 4, 8, 3)
    path = write_tfjs(tmp_path, keras_state(network))
    assert_loads(path, network, "ResidualDenseNet (esrgan-slim)", 1e-6)
    assert set(load_network(path).checksums) == {"a.bin", "b.bin"}
    np.savez(tmp_path / "x.npz", **keras_state(network))
    assert_loads(tmp_path / "x.npz", network, "ResidualDenseNet (esrgan-slim)", 1e-6)


def test_a_manifest_reads_no_file_of_another_folder_and_no_cut_one(tmp_path: Path) -> None:
    path = write_tfjs(tmp_path, keras_state(ResidualDenseNet(1, 1, 2, 4, 2)))
    (tmp_path / "b.bin").write_bytes((tmp_path / "b.bin").read_bytes()[:-4])
    with pytest.raises(ConversionError, match="cut off at"):
        load_network(path)
    path.write_text(path.read_text().replace("a.bin", "../a.bin"))
    with pytest.raises(ConversionError, match="allowed are files beside it"):
        load_network(path)
    path.write_text("{}")
    with pytest.raises(ConversionError, match="lists no weights"):
        load_network(path)


def write_ncnn(folder: Path, network: UpscalingNetwork, half: bool) -> Path:
    """The layers in the order in which they run."""
    layers, data = ["Input in 0 1 data"], b""
    modules = [module for module in network.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.PReLU))]
    for index, module in enumerate(modules):
        weight = module.weight.detach().flatten()
        if isinstance(module, torch.nn.PReLU):
            layers.append(f"PReLU p{index} 1 1 a b 0={len(weight)}")
            data += weight.numpy().astype("<f4").tobytes()
            continue
        assert module.bias is not None
        layers.append(
            f"Convolution c{index} 1 1 a b 0={module.out_channels} 1=3 4=1 5=1 6={len(weight)} 9=2 -23310=1,2.0e-01"
        )
        numbers = weight.numpy().astype("<f2" if half else "<f4").tobytes()
        data += struct.pack("<I", 0x01306B47 if half else 0) + numbers + b"\0" * (-len(numbers) % 4)
        data += module.bias.detach().numpy().astype("<f4").tobytes()
    layers += ["Interp r 1 1 a b 0=1 1=2.0 2=2.0"] * 2 if isinstance(network, RRDBNet) else []
    (folder / "x.param").write_text("\n".join(["7767517", f"{len(layers)} 9", *layers]) + "\n")
    (folder / "x.bin").write_bytes(data)
    return folder / "x.param"


@pytest.mark.parametrize("half", [False, True])
def test_ncnns_nameless_weights(tmp_path: Path, half: bool) -> None:
    network = RRDBNet(2, 3, 3)  # 81 weights a convolution: an odd number of 16-bit values has to be filled up
    assert_loads(write_ncnn(tmp_path, network, half), network, "RRDBNet (Real-ESRGAN)", 1e-2 if half else 0.0)
    compact = SRVGGNetCompact(2, 4, 2)
    assert_loads(write_ncnn(tmp_path, compact, half), compact, "SRVGGNetCompact", 1e-2 if half else 0.0)


def test_damaged_files_of_ncnn_are_refused(tmp_path: Path) -> None:
    path = write_ncnn(tmp_path, rrdb(), True)
    weights, text = path.with_suffix(".bin"), path.read_text()
    good = weights.read_bytes()
    for data, message in ((good[:-4], "cut off"), (good + b"\0" * 4, "its layers take"), (b"\1" * 4 + good, "marks")):
        weights.write_bytes(data)
        with pytest.raises(ConversionError, match=message):
            load_network(path)
    weights.write_bytes(good)
    path.write_text(text.replace("Input", "LSTM"))
    with pytest.raises(ConversionError, match="layer in is a LSTM"):
        load_network(path)
    path.write_text("PK")
    with pytest.raises(ConversionError, match="begins with 'PK'"):
        load_network(path)
    weights.unlink()
    with pytest.raises(ConversionError, match="There is no file .*x.bin"):
        load_network(path)


def test_another_network_is_refused_with_its_keys(tmp_path: Path) -> None:
    torch.save({"params": {"layers.0.residual_group.weight": torch.zeros(2)}}, tmp_path / "swinir.pth")
    with pytest.raises(
        ConversionError, match=r"its keys: layers\.0\.residual_group\.weight\. Known here are RRDBNet"
    ):
        load_network(tmp_path / "swinir.pth")


def test_a_key_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    state = state_of(rrdb())
    torch.save({**state, "body.0.rdb1.conv1x1.weight": torch.zeros(2)}, tmp_path / "more.pth")
    with pytest.raises(ConversionError, match=r"1 unexpected \(body\.0\.rdb1\.conv1x1\.weight\)"):
        load_network(tmp_path / "more.pth")
    torch.save({key: value for key, value in state.items() if key != "conv_hr.bias"}, tmp_path / "fewer.pth")
    with pytest.raises(ConversionError, match=r"1 missing \(conv_hr\.bias\)"):
        load_network(tmp_path / "fewer.pth")
    grey = {**state, "conv_first.weight": torch.zeros(4, 1, 3, 3)}
    torch.save(grey, tmp_path / "grey.pth")
    with pytest.raises(ConversionError, match="takes 1 channels"):
        load_network(tmp_path / "grey.pth")


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    torch.save({"params": state_of(rrdb()), "args": Path("/")}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="reading this pickle would run"):
        load_network(tmp_path / "x.pth")
