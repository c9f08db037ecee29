"""Reading checkpoints: nothing is executed, and what cannot be read is explained."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from davae.convert.keys import ConversionError
from davae.convert.unpickle import read_source, read_statistics

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "vae.pt"
    torch.save({**WEIGHTS, "x": Evil(mark)}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        ConversionError, match=r"Refused .*vae\.pt: reading this pickle would run posix\.system"
    ) as error:
        read_source(path)
    assert "safetensors" in str(error.value)
    assert "state dict" in str(error.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # it was a real one


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_too(tmp_path: Path, protocol: int) -> None:
    mark, path = tmp_path / "mark", tmp_path / "vae.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Evil(mark)}, protocol=protocol))
    with pytest.raises(ConversionError, match=r"Refused .*vae\.ckpt"):
        read_source(path)
    assert not mark.exists()


def test_statistics_are_read_as_carefully(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "stats.pt"
    torch.save({"mean": torch.zeros(4), "std": Evil(mark)}, path)
    with pytest.raises(ConversionError, match="would run posix"):
        read_statistics(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"weights", b".", b"\x80\x02]q\x00.", b"PK\x03\x04 and no more"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_foreign_and_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"vae{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=f"vae{suffix}"):
        read_source(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    for form in (True, False):
        path = tmp_path / "vae.pth"
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=form)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ConversionError, match=r"vae\.pth.*damaged"):
            read_source(path)


def test_flat_and_nested_checkpoints_are_read_alike(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "flat.pt")
    torch.save({"state_dict": WEIGHTS, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}, tmp_path / "nested.ckpt")
    save_file(WEIGHTS, tmp_path / "safe.safetensors")
    for name in ("flat.pt", "nested.ckpt", "safe.safetensors"):
        source = read_source(tmp_path / name)
        assert source.tensors.keys() == WEIGHTS.keys()
        assert all(torch.equal(source.tensors[key], WEIGHTS[key]) for key in WEIGHTS)
    nested = read_source(tmp_path / "nested.ckpt")
    assert dict(nested.dropped) == dict.fromkeys(["epoch", "optimizer_states"], "state of a training")


def test_what_is_no_tensor_is_reported(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "step": 5}, tmp_path / "a.pt")
    assert dict(read_source(tmp_path / "a.pt").dropped) == {"step": "not a tensor"}
    torch.save({"step": 5}, tmp_path / "b.pt")
    with pytest.raises(ConversionError, match="has no weights; its entries: step"):
        read_source(tmp_path / "b.pt")
    torch.save([torch.ones(1)], tmp_path / "c.pt")
    with pytest.raises(ConversionError, match="holds a list; expected a dict of tensors"):
        read_source(tmp_path / "c.pt")


def test_unknown_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"There is no file .*nowhere\.pt"):
        read_source(tmp_path / "nowhere.pt")
    (tmp_path / "vae.onnx").write_bytes(b"x")
    with pytest.raises(ConversionError, match=r"known file types: \.pt, \.pth, \.ckpt, \.bin, \.safetensors"):
        read_source(tmp_path / "vae.onnx")


def test_statistics_come_in_every_usual_form(tmp_path: Path) -> None:
    mean, std = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.25, 3.0])
    column = {"mean": mean.view(1, 3, 1, 1), "std": std.view(1, 3, 1, 1)}
    torch.save(column, tmp_path / "latents_stats.pt")
    save_file(column, tmp_path / "stats.safetensors")
    (tmp_path / "stats.json").write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    for name in ("latents_stats.pt", "stats.safetensors", "stats.json"):
        statistics = read_statistics(tmp_path / name)
        assert statistics.mean == tuple(mean.tolist())
        assert statistics.std == tuple(std.tolist())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"mean": [0.0]}', "expected the entries 'mean' and 'std'"),
        ("[1, 2]", "expected the entries 'mean' and 'std'"),
        ("{", "is no JSON"),
        ('{"mean": [0, 0], "std": [1]}', "2 means, 1 deviations"),
        ('{"mean": [0, 0], "std": [1, 0]}', "deviations positive"),
        ('{"mean": [NaN], "std": [1]}', "'mean' is not finite"),
        ('{"mean": [[0, 1], [1, 0]], "std": [1, 1]}', r"'mean' has shape \[2, 2\]; allowed: \[K\], \[1, K, 1, 1\]"),
        ('{"mean": [], "std": []}', "'mean' has shape"),
        ('{"mean": 3, "std": 1}', "'mean' has shape"),
        ('{"mean": ["a"], "std": [1]}', "'mean' is no list of numbers"),
    ],
)
def test_wrong_statistics_are_explained(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "stats.json"
    path.write_text(content)
    with pytest.raises(ConversionError, match=expected):
        read_statistics(path)
