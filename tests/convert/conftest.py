"""Checkpoints for the converters: golden weights, tiny random ones, full-size ones without memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

KEYS = Path(__file__).parent / "keys"
State = dict[str, Tensor]


def _weights(tensors: State) -> State:
    return {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}


@pytest.fixture
def vavae(golden: Callable[[str], State]) -> State:
    """A toy VA-VAE checkpoint: f2, 4 channels, widths (32, 32), attention at the last level."""
    return _weights(golden("ldm_autoencoder"))


@pytest.fixture
def imagenet(golden: Callable[[str], State]) -> State:
    """A toy checkpoint of the ImageNet branch: f2, 4 + 12 channels."""
    return _weights(golden("davae_tokenizer"))


@pytest.fixture
def sd3(golden: Callable[[str], State]) -> State:
    """A toy checkpoint of the text-to-image branch: f8, 4 + 4 channels, 4 norm groups."""
    return _weights(golden("sd3_tokenizer"))


@pytest.fixture
def full_size() -> Callable[[str], State]:
    """Name -> a public checkpoint's keys and shapes, on the meta device."""

    def load(name: str) -> State:
        rows = json.loads((KEYS / f"{name}.json").read_text())
        return {key: torch.empty(shape, device="meta") for key, shape in rows.items()}

    return load


@pytest.fixture
def base_of() -> Callable[[State], State]:
    """ImageNet checkpoint -> a VA-VAE checkpoint with its base encoder, and a decoder of its own."""

    def make(state: State) -> State:
        base = {
            key.removeprefix("base_"): value
            for key, value in state.items()
            if key.startswith(("base_encoder.", "base_quant_conv."))
        }
        for key, value in state.items():
            if key.startswith("da.decoder."):
                base[key.removeprefix("da.")] = value.clone()
        first = base["decoder.conv_in.weight"]
        channels = first.shape[1]
        base["post_quant_conv.weight"] = torch.full((channels, channels, 1, 1), 0.1).to(first)
        base["post_quant_conv.bias"] = torch.zeros(channels).to(first)
        base["decoder.conv_out.bias"] = base["decoder.conv_out.bias"] + 0.5
        return base

    return make
