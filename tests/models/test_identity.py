"""What a model is: the same hash wherever it lies and however it is stored, another for another model."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from davae import AutoencoderDA, LightningDiT
from davae.models.identity import nameless, weights_hash
from models.families import sd3


@pytest.fixture
def model() -> LightningDiT:
    return LightningDiT(sample_size=4, in_channels=4, hidden_size=16, num_layers=1, num_attention_heads=2)


def test_the_hash_is_of_config_and_weights_in_float32(model: LightningDiT) -> None:
    """As caches and run.json hold it."""
    digest = hashlib.blake2b(digest_size=16)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    assert weights_hash(model) == digest.hexdigest()


def test_it_is_the_same_after_saving_in_any_place_and_precision(tmp_path: Path) -> None:
    model = AutoencoderDA.from_base(sd3().to(torch.bfloat16))
    expected = weights_hash(model)
    model.save_pretrained(tmp_path / "here")
    assert weights_hash(AutoencoderDA.from_pretrained(tmp_path / "here")) == expected  # in float32
    (tmp_path / "here").rename(tmp_path / "there")
    assert weights_hash(AutoencoderDA.from_pretrained(tmp_path / "there", torch_dtype=torch.bfloat16)) == expected


def test_it_differs_where_anything_of_the_function_does(model: LightningDiT) -> None:
    hashes = {weights_hash(model)}
    with torch.no_grad():
        model.x_embedder.proj.weight[0, 0] += 1e-6
    hashes.add(weights_hash(model))
    model.register_to_config(qk_norm=True)
    hashes.add(weights_hash(model))
    model.feat_rope.register_buffer("further", torch.zeros(1))
    hashes.add(weights_hash(model))
    assert len(hashes) == 4


def test_an_entry_without_a_value_is_as_good_as_none(model: LightningDiT) -> None:
    expected = weights_hash(model)
    model.register_to_config(invented_later=None)
    assert weights_hash(model) == expected
    model.register_to_config(invented_later=0)
    assert weights_hash(model) != expected


def test_a_nameless_model_is_saved_alike_wherever_it_lay(model: LightningDiT, tmp_path: Path) -> None:
    configs = []
    for place in ("one", "other"):
        model.save_pretrained(tmp_path / place)
        loaded = nameless(LightningDiT.from_pretrained(tmp_path / place))
        assert isinstance(loaded, LightningDiT)
        loaded.save_pretrained(tmp_path / f"{place} again")
        configs.append((tmp_path / f"{place} again" / "config.json").read_text())
    assert configs[0] == configs[1]
    assert str(tmp_path) not in configs[0]
