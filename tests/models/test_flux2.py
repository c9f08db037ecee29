"""The upgraded autoencoder of FLUX.2 in its stock pipeline, which has its own latent scaling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline, Flux2Transformer2DModel
from torch import Tensor

from conftest import assert_close
from davae import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from models.families import CHANNELS, calibrated, flux2, images

DETAIL = 6


@pytest.fixture
def base() -> Any:
    return flux2()


@pytest.fixture
def model(base: Any) -> AutoencoderDA:
    return calibrated(base, images(4), detail_channels=DETAIL)


def pipeline(vae: Any) -> Flux2Pipeline:
    """Without a text encoder: prompts come as embeddings."""
    transformer = Flux2Transformer2DModel(
        in_channels=4 * vae.config.latent_channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = Flux2Pipeline(scheduler, vae, text_encoder=None, tokenizer=None, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seen_by_pipeline(pipe: Flux2Pipeline, image: Tensor) -> Tensor:
    """What its transformer is given for an image: packed and normalised, [B, 4 K, h / 2, w / 2]."""
    return pipe._encode_vae_image(image, generator=None)


@torch.no_grad()
def test_our_scaling_of_the_base_is_the_pipelines(base: Any) -> None:
    pipe, image = pipeline(base), images()
    seen = scaling_of(base).normalise(base.encode(image).latent_dist.mode())
    assert_close(Flux2Pipeline._patchify_latents(seen), seen_by_pipeline(pipe, image), 1e-5)
    assert_close(Flux2Pipeline._unpatchify_latents(seen_by_pipeline(pipe, image)), seen, 1e-5)


@torch.no_grad()
def test_our_scaling_of_the_upgrade_is_the_pipelines(model: AutoencoderDA) -> None:
    pipe, image = pipeline(model), images()
    seen = scaling_of(model).normalise(model.encode(image).latent_dist.mode())
    assert_close(Flux2Pipeline._patchify_latents(seen), seen_by_pipeline(pipe, image), 1e-5)
    raw, mean, _ = model.moments(image)
    from_cache = model.raw_scaling.normalise(model.layout.join(raw, mean))
    assert_close(Flux2Pipeline._patchify_latents(from_cache), seen_by_pipeline(pipe, image))


def test_the_batch_norm_has_the_bases_entries_first(base: Any, model: AutoencoderDA) -> None:
    base_features = base.bn.num_features
    assert base_features == 4 * CHANNELS
    assert model.bn.num_features == 4 * (CHANNELS + DETAIL)
    assert torch.equal(model.bn.running_mean[:base_features], base.bn.running_mean)
    assert torch.equal(model.bn.running_var[:base_features], base.bn.running_var)
    assert not model.bn.running_mean[base_features:].any()
    torch.testing.assert_close(
        model.bn.running_var[base_features:], torch.full((4 * DETAIL,), 1 - base.config.batch_norm_eps)
    )
    assert model.bn.eps == base.bn.eps == model.config.batch_norm_eps
    assert model.config.scaling_factor is None


@torch.no_grad()
def test_the_pipeline_sees_the_bases_latent_and_standardised_detail(base: Any) -> None:
    batch = images(4)
    model = calibrated(base, batch, detail_channels=DETAIL)
    seen = seen_by_pipeline(pipeline(model), batch)
    base_features = 4 * CHANNELS
    assert_close(seen[:, :base_features], seen_by_pipeline(pipeline(base), model.base_image(batch)), 1e-5)
    detail = seen[:, base_features:].unflatten(
        1, (DETAIL, 4)
    )  # a detail channel has the same statistics in every phase
    assert detail.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-4
    assert (detail.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3


@torch.no_grad()
def test_training_leaves_the_statistics_alone(base: Any) -> None:
    model = AutoencoderDA.from_base(base).train()
    before = model.bn.running_mean.clone(), model.bn.running_var.clone()
    model(images())
    assert torch.equal(model.bn.running_mean, before[0])
    assert torch.equal(model.bn.running_var, before[1])


@torch.no_grad()
def test_the_stock_pipeline_draws_saves_and_loads(model: AutoencoderDA, tmp_path: Path) -> None:
    def draw(pipe: Flux2Pipeline, output_type: str) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        settings = {"height": 32, "width": 64, "num_inference_steps": 2, "generator": generator}
        return pipe(prompt_embeds=embeddings, output_type=output_type, **settings).images

    embeddings, pipe = torch.randn(1, 5, 8), pipeline(model)
    picture = draw(pipe, "pt")
    assert picture.shape == (1, 3, 32, 64)
    tokens = draw(pipe, "latent")
    assert tokens.shape == (1, 2 * 4, 4 * (CHANNELS + DETAIL))  # f8 and patches of 2: 16 pixels a token
    packed = tokens.transpose(1, 2).unflatten(2, (2, 4))
    stored = scaling_of(model).denormalise(Flux2Pipeline._unpatchify_latents(packed))
    assert_close((model.decode(stored).sample / 2 + 0.5).clamp(0, 1), picture)

    pipe.save_pretrained(tmp_path)
    loaded = Flux2Pipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded.vae.bn.running_var, model.bn.running_var)
    assert torch.equal(loaded.vae.bn.running_mean, model.bn.running_mean)
    assert_close(draw(loaded, "pt"), picture)
