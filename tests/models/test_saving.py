"""Saved models: of finite numbers, sealed, and refused by name where a bit of them changed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from davae.core.files import SEAL, folder_hash
from davae.models.loading import load_autoencoder
from davae.models.saving import saving, verify
from tiny_pair import build_tiny_pair


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pair as a training leaves it."""
    autoencoder = load_autoencoder(build_tiny_pair(tmp_path / "given"))
    with saving(tmp_path / "pair", autoencoder) as folder:
        autoencoder.save_pretrained(folder / "vae")
    return tmp_path / "pair"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)


def test_a_seal_changes_nothing_about_what_a_model_is(saved: Path) -> None:
    assert verify(saved) == saved
    sealed = folder_hash(saved)
    (saved / SEAL).unlink()
    assert folder_hash(saved) == sealed
    verify(saved)  # of an earlier version


@pytest.mark.parametrize("part", [".", "vae"])
def test_a_bit_that_flips_is_found_before_the_weights_are_used(saved: Path, part: str) -> None:
    load_autoencoder(saved / part)
    flip(saved / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=r"vae/diffusion_pytorch_model\.safetensors is not what was saved"):
        load_autoencoder(saved / part)
    (saved / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="is missing"):
        verify(saved / part)


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 1}'])
def test_a_damaged_seal_is_named(saved: Path, damage: str) -> None:
    (saved / SEAL).write_text(damage)
    with pytest.raises(ValueError, match=rf"{SEAL} is damaged.*Remove it"):
        verify(saved)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, saved: Path) -> None:
    model = nn.Linear(2, 2)
    model.bias.data[1] = torch.nan
    before = load_file(saved / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(FloatingPointError, match=r"Linear to .*bias. Nothing was written"), saving(saved, model):
        pass
    assert load_file(saved / "vae" / "diffusion_pytorch_model.safetensors").keys() == before.keys()
