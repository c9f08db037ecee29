"""Tensors on disk: what comes back is what was written, or nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from davae.core.tensor_files import DamagedFileError, load_tensors, metadata_of, save_tensors

TENSORS = {
    "half": torch.linspace(-2, 2, 12).reshape(3, 4).half(),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "flag": torch.tensor(True),
    "empty": torch.ones(0, 3),
}


def saved(folder: Path) -> Path:
    save_tensors(TENSORS, folder / "a.safetensors", {"key": "k"})
    return folder / "a.safetensors"


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = saved(tmp_path)
    assert equal(load_tensors(path))
    assert equal(load_file(path)), "others read it as any safetensors file"
    assert metadata_of(path)["key"] == "k"


def test_every_bit_that_flips_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    for place in range(8, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found, metadata = load_tensors(path), metadata_of(path)
        except DamagedFileError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # a bit of the name of the checksum, or of what is kept beside the tensors
            assert equal(found)
            assert metadata.get("key") != "k" or place < whole.index(b"davae") + 5


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for length in (0, 4, 100, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(DamagedFileError, match=r"a\.safetensors is damaged"):
            load_tensors(path)
        saved(tmp_path)


def test_files_of_others_have_no_checksum(tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "b.safetensors")
    assert equal(load_tensors(tmp_path / "b.safetensors"))
