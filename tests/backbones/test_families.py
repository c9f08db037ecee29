"""What every family says of itself is whole, and is found by the names that files and people use."""

from dataclasses import replace
from inspect import signature
from typing import Any

import diffusers
import pytest
import torch

import davae
from backbones.families import FAMILIES
from backbones.transformers import POOLED, TEXT
from davae.backbones.base import Backbone
from davae.backbones.dit import DIT
from davae.backbones.flux import FLUX
from davae.backbones.lightningdit import LIGHTNINGDIT
from davae.backbones.pixart import PIXART
from davae.backbones.registry import (
    BACKBONES,
    backbone_named,
    backbone_of,
    drawing_backbone,
    text_pipelines,
    trained_backbones,
)
from davae.backbones.sana import SANA
from davae.backbones.sd3 import CLIP_TOKENS, SD3

DRAWN = {
    "FluxPipeline": FLUX,
    "LightningDiTPipeline": LIGHTNINGDIT,
    "PixArtSigmaPipeline": PIXART,
    "SanaPipeline": SANA,
    "StableDiffusion3Pipeline": SD3,
}
TRAINED = ("FluxTransformer2DModel", "LightningDiT", "SD3Transformer2DModel", "SanaTransformer2DModel")


def test_families_are_found_by_class_pipeline_and_object() -> None:
    assert backbone_named("SD3Transformer2DModel") is SD3 is backbone_of(FAMILIES["sd3"].transformer())
    assert {name: drawing_backbone(name) for name in DRAWN} == DRAWN
    assert text_pipelines() == tuple(name for name in sorted(DRAWN) if name != "LightningDiTPipeline")
    assert trained_backbones() == TRAINED
    with pytest.raises(ValueError, match="upgrade a UNet2DModel; known transformers: DiTTransformer2DModel, Flux2"):
        backbone_named("UNet2DModel")
    with pytest.raises(ValueError, match=f"Cannot draw with a DiTPipeline; allowed are {', '.join(sorted(DRAWN))}"):
        drawing_backbone("DiTPipeline")


def test_pipelines_exist_and_belong_to_one_family() -> None:
    named = [pipeline for backbone in BACKBONES.values() for pipeline in backbone.pipelines]
    assert sorted(named) == sorted(DRAWN)
    for name in named:
        assert issubclass(getattr(davae if name in davae.__all__ else diffusers, name), diffusers.DiffusionPipeline)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.pipeline is not None])
def test_the_call_takes_what_the_family_says(name: str) -> None:
    pipe = FAMILIES[name].make()
    backbone, call = backbone_of(pipe.transformer), signature(type(pipe).__call__).parameters
    assert backbone.call_argument in call
    assert backbone.call_argument == ("class_labels" if name == "dit" else "prompt")
    assert ("negative_prompt" in call) == (
        backbone.takes_negative or backbone is FLUX
    )  # FLUX's is of another guidance
    assert not backbone.pipelines or type(pipe).__name__ in backbone.pipelines
    if backbone.takes_interval:
        assert "callback_on_step_end" in call


def test_only_sd3_and_lightningdit_switch_guidance_between_steps() -> None:
    assert [name for name, backbone in BACKBONES.items() if backbone.takes_interval] == [
        "LightningDiT",
        "SD3Transformer2DModel",
    ]
    assert LIGHTNINGDIT.call_argument == "class_labels"
    assert [name for name, backbone in BACKBONES.items() if not backbone.is_text] == [
        "DiTTransformer2DModel",
        "LightningDiT",
    ]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("lightningdit", {"label": ()}),
        ("sd3", {"prompt_embeds": (CLIP_TOKENS + 9, TEXT), "pooled_prompt_embeds": (POOLED,)}),
        ("flux", {"prompt_embeds": (9, TEXT), "pooled_prompt_embeds": (POOLED,)}),
        ("sana", {"prompt_embeds": (9, TEXT), "prompt_attention_mask": (9,)}),
    ],
)
@torch.no_grad()
def test_velocity_takes_conditions_of_the_shapes_that_are_told(name: str, want: dict[str, Any]) -> None:
    transformer = FAMILIES[name].transformer()
    backbone = backbone_of(transformer)
    shapes = backbone.shapes_of_conditions(transformer.config, 9)
    assert {key: shape for key, (shape, _) in shapes.items()} == want
    conditions = {key: torch.ones(2, *shape, dtype=dtype) for key, (shape, dtype) in shapes.items()}
    latent = torch.randn(2, backbone.latent_channels(transformer.config), *FAMILIES[name].sizes)
    assert backbone.velocity is not None
    assert backbone.velocity(transformer, latent, torch.rand(2), conditions).shape == latent.shape


def test_shapes_of_a_family_that_is_not_trained_are_refused() -> None:
    assert not DIT.is_trained
    with pytest.raises(
        ValueError, match="conditions of a DiTTransformer2DModel are not known.*does not train it. Take"
    ):
        DIT.shapes_of_conditions({}, 9)


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        (SD3, {"condition_shapes": None}, "incomplete: got velocity without condition_shapes. Give all of velocity"),
        (SD3, {"velocity": None}, "got condition_shapes without velocity"),
        (SD3, {"encode_text": None}, "got text_parts, count_tokens without encode_text"),
        (SD3, {"text_parts": (), "encode_text": None, "count_tokens": None}, "trained from text, which nothing"),
        (SD3, {"convention": "noise"}, "it is trained, and predicts noise: allowed are velocity, native velocity"),
        (SD3, {"pipelines": ()}, "guidance is switched by the samplers, which draw from none of its pipelines"),
        (SD3, {"condition": "label", "takes_negative": False}, "it draws from labels, and encodes text"),
        (DIT, {"takes_negative": True}, "it draws from labels, and takes a negative prompt"),
    ],
)
def test_a_family_that_contradicts_itself_is_refused(
    backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"The family {backbone.class_name} .*{message}"):
        replace(backbone, **changes)
