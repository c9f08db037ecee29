"""The parts of the VF term: phases over steps, the projection in both directions, what is refused."""

from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from conftest import assert_close
from davae.core.vision_loss import vision_foundation
from davae.models.vision_features import FoundationFeatures
from davae.train.objective import VisionAlignConfig, VisionWeighting
from davae.train.vision_alignment import VisionAlignment, VisionProjection

RELEASED = (
    VisionWeighting(from_step=0, weight=0.5, cosine_margin=0.0, distance_margin=0.0),
    VisionWeighting(from_step=10, weight=0.1, cosine_margin=0.0, distance_margin=0.0),
    VisionWeighting(from_step=20, weight=0.1, cosine_margin=0.5, distance_margin=0.25),
)


def test_a_step_has_the_last_weighting_that_began() -> None:
    config = VisionAlignConfig(model="somewhere", phases=RELEASED)
    assert [config.weighting(step) for step in (0, 9, 10, 19, 20, 10**6)] == [RELEASED[i] for i in (0, 0, 1, 1, 2, 2)]


def test_the_defaults_are_the_plain_configuration() -> None:
    weighting = VisionAlignConfig(model="somewhere").weighting(0)
    assert (weighting.weight, weighting.cosine_margin, weighting.distance_margin) == (0.1, 0.5, 0.25)


@pytest.mark.parametrize("starts", [(), (1,), (0, 0), (0, 5, 3)])
def test_phases_must_follow_each_other_from_step_0(starts: tuple[int, ...]) -> None:
    phases = tuple(VisionWeighting(from_step=start) for start in starts)
    with pytest.raises(ValueError, match="phases must start at step 0 .* got"):
        VisionAlignConfig(model="somewhere", phases=phases)


def test_a_weighting_has_a_weight() -> None:
    with pytest.raises(ValueError, match="weight must be a finite number, more than 0; got 0"):
        VisionWeighting(weight=0)


@pytest.mark.parametrize("setting", ["from_step", "cosine_margin", "distance_margin"])
def test_a_weighting_has_no_negative_setting(setting: str) -> None:
    values: dict[str, Any] = {setting: -1}
    with pytest.raises(ValueError, match=f"{setting} must be a .*, at least 0; got -1"):
        VisionWeighting(**values)


@torch.no_grad()
@pytest.mark.parametrize("reverse", [True, False])
def test_projection_is_the_references(golden, reverse: bool) -> None:
    tensors = golden("vf_loss")
    projection = VisionProjection(6, 24, reverse)
    prefix = "weights." if reverse else "weights.forward_variant."
    names = [name for name, _ in projection.conv.named_parameters()]
    assert names == (["weight"] if reverse else ["weight", "bias"])
    projection.conv.load_state_dict({name: tensors[f"{prefix}linear_proj.{name}"] for name in names})
    latent, features = projection(tensors["in.z"], tensors["in.features"])
    if reverse:
        assert_close(latent, tensors["out.z_proj"], 1e-5)
        assert torch.equal(features, tensors["in.features"])
    else:
        assert torch.equal(latent, tensors["in.z"])
        assert_close(features, tensors["out.forward_variant.features_proj"], 1e-5)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_term_has_the_weight_and_the_margins_of_the_step(adaptive: bool) -> None:
    model = Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=4))
    config = VisionAlignConfig(model="somewhere", phases=RELEASED, adaptive=adaptive)
    vision = VisionAlignment(config, FoundationFeatures(model, 2), latent_channels=3)
    pair = vision.projection(torch.randn(1, 3, 2, 2), vision.features(torch.rand(1, 3, 8, 8)))
    place = torch.nn.Parameter(torch.ones(1))
    for step, expected in ((9, RELEASED[0]), (19, RELEASED[1]), (20, RELEASED[2])):
        term = vision.term(pair, step, place)
        assert term.weight == expected.weight
        assert torch.equal(term.loss, vision_foundation(*pair, expected.cosine_margin, expected.distance_margin))
        assert term.parameter is (place if adaptive else None)
        assert term.maximum == 1e8
