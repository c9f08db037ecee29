"""A text-to-image family with training is one `Backbone`: what the library knows of one, it knows of a new one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import davae
from backbones.toy_family import TEXT, TOY, ToyPipeline, ToyTransformer, register, toy_pipeline
from conftest import assert_close
from davae.backbones.adapter import save_adapter
from davae.backbones.lora import prepare_lora
from davae.backbones.pair import Pair
from davae.backbones.registry import (
    backbone_named,
    backbone_of,
    drawing_backbone,
    text_pipelines,
    trained_backbones,
)
from davae.backbones.settings import LoraSettings
from davae.core.flow import from_sigma
from tiny_text import MAX_LENGTH

PROMPTS = ["a matte red cube", "a metal blue sphere"]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)


def test_it_is_found_and_was_unknown_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backbone_of(ToyTransformer()) is backbone_named("ToyTransformer") is TOY
    assert drawing_backbone("ToyPipeline") is TOY
    assert "ToyPipeline" in text_pipelines()
    assert "ToyTransformer" in trained_backbones()
    monkeypatch.undo()
    assert "ToyPipeline" not in text_pipelines()
    assert "ToyTransformer" not in trained_backbones()
    with pytest.raises(ValueError, match="Cannot upgrade a ToyTransformer"):
        backbone_of(ToyTransformer())


@torch.no_grad()
def test_its_conditions_have_shapes_that_its_velocity_takes() -> None:
    pipe = toy_pipeline()
    shapes = TOY.shapes_of_conditions(pipe.transformer.config, MAX_LENGTH)
    assert shapes == {"prompt_embeds": ((MAX_LENGTH, TEXT), torch.float32)}
    assert TOY.encode_text is not None
    encoded = TOY.encode_text(pipe, PROMPTS, MAX_LENGTH)
    assert {name: (tuple(rows.shape[1:]), rows.dtype) for name, rows in encoded.items()} == shapes


@torch.no_grad()
def test_euler_steps_with_its_velocity_are_those_of_its_pipeline() -> None:
    pipe, noise = toy_pipeline(), torch.randn(2, 4, 4, 4)
    assert TOY.encode_text is not None
    assert TOY.velocity is not None
    conditions = TOY.encode_text(pipe, PROMPTS, MAX_LENGTH)
    want = pipe(PROMPTS, latents=noise, num_inference_steps=3).images
    latent, sigmas = noise, pipe.scheduler.sigmas
    for start, end in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = TOY.velocity(pipe.transformer, latent, from_sigma(start).expand(2), conditions)
        latent = latent + (start - end) * velocity
    assert_close(latent, want, 1e-5)


@torch.no_grad()
def test_it_widens() -> None:
    model, text = ToyTransformer().eval(), torch.randn(2, 5, TEXT)
    widened, latent = davae.widen(model, detail_channels=3), torch.randn(2, 7, 4, 6)
    assert type(widened) is ToyTransformer
    assert widened.config.in_channels == 7
    predicted = widened(latent, torch.rand(2), text)
    assert not predicted[:, 4:].any()
    sigma = torch.tensor([0.2, 0.9])
    assert_close(widened(latent, sigma, text)[:, :4], model(latent[:, :4], sigma, text), 1e-5)


def test_its_pair_is_opened_part_by_part(tmp_path: Path) -> None:
    toy_pipeline().save_pretrained(tmp_path)
    pair = Pair(tmp_path)
    assert pair.backbone is TOY
    assert pair.is_text
    assert pair.text_parts == ["text_encoder", "tokenizer"]
    assert pair.pipeline_class is ToyPipeline
    assert pair.transformer_config.text_width == TEXT
    assert type(pair.load_transformer()) is ToyTransformer
    assert type(pair.load()) is ToyPipeline


@torch.no_grad()
def test_it_is_upgraded_and_takes_what_was_trained(tmp_path: Path) -> None:
    pipe = davae.upgrade(toy_pipeline(), image_size=32)
    assert type(pipe) is ToyPipeline
    assert pipe.transformer.config.sample_size == 4
    noise = torch.randn(1, 8, 4, 4)
    before = pipe(PROMPTS[:1], latents=noise).images
    assert before.shape == (1, 8, 4, 4)
    trained = prepare_lora(davae.upgrade(toy_pipeline()).transformer, LoraSettings(rank=2), seed=0)
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.add_(0.1)
    save_adapter(trained, tmp_path, detail_channels=4)
    davae.load_finetuned(pipe, tmp_path)
    after: Tensor = pipe(PROMPTS[:1], latents=noise).images
    assert not torch.allclose(after, before, atol=0.01)
    pipe.register_modules(transformer=trained)
    assert_close(after, pipe(PROMPTS[:1], latents=noise).images, 1e-5)
