"""What people send to other processes: every public model, pipeline and family can be pickled and copied."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import davae
from davae.backbones.registry import BACKBONES
from davae.models.adapter import adapt
from davae.models.bases import FAMILIES
from davae.models.vision_features import FAMILIES as FOUNDATIONS
from models.families import BASES
from tiny_pair import tiny_autoencoder, tiny_transformer


def by_pickle(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def by_torch(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS = [by_pickle, copy.deepcopy, by_torch]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BASES)
@torch.no_grad()
def test_an_upgraded_autoencoder_is_copied_as_its_base_is(name: str, way: Any) -> None:
    model = davae.AutoencoderDA.from_base(BASES[name]()).eval()
    again = way(model)
    assert type(again) is davae.AutoencoderDA
    image = torch.rand(1, 3, 2 * model.compression, 2 * model.compression)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(again.moments(image), model.moments(image), strict=True)
    )
    assert way(adapt(model)).geometry == adapt(model).geometry


@pytest.mark.parametrize("way", WAYS)
def test_a_pair_is_copied_whole(way: Any) -> None:
    upgraded = davae.upgrade(
        davae.LightningDiTPipeline(tiny_autoencoder(), tiny_transformer(), FlowMatchEulerDiscreteScheduler(shift=2.0))
    )
    again = way(upgraded)
    assert type(again) is davae.LightningDiTPipeline
    for part in ("vae", "transformer"):
        state = getattr(again, part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in getattr(upgraded, part).state_dict().items())
    assert again.scheduler.config.shift == 2.0


@pytest.mark.parametrize("families", [FAMILIES, BACKBONES, FOUNDATIONS])
def test_families_are_pickled(families: dict[str, Any]) -> None:
    for family in families.values():
        assert by_pickle(family) == family
