"""ControlNets of SD3 widen with their transformer."""

from typing import Any

import pytest
import torch
from diffusers import (
    SD3ControlNetModel,
    SD3MultiControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
)
from torch import Tensor

import davae
from backbones.families import PIPELINES
from backbones.transformers import SD3_CONFIG, text, with_noise
from conftest import assert_close
from davae.backbones.widening import widen_with_report

SD3 = PIPELINES["sd3"]


def controlnet(**changes: Any) -> SD3ControlNetModel:
    """As SD3's, two layers."""
    return with_noise(SD3ControlNetModel(**(SD3_CONFIG | {"sample_size": 8, "dual_attention_layers": ()} | changes)))


@torch.no_grad()
def residuals(model: Any, noisy: Tensor, control: Tensor) -> Tensor:
    """[layers, B, tokens, width]."""
    states = text("states", "pooled", batch=len(noisy))
    arguments = {"encoder_hidden_states": states["states"], "pooled_projections": states["pooled"]}
    time = torch.full((len(noisy),), 300.0)
    return torch.stack(model(noisy, control, timestep=time, **arguments, return_dict=False)[0])


@pytest.mark.parametrize("extra", [0, 1])
def test_residuals_are_the_pretrained_for_any_detail(extra: int) -> None:
    model = controlnet(extra_conditioning_channels=extra)
    widened, report = widen_with_report(model, 6)
    assert report.widened == ["pos_embed.proj.weight", "pos_embed_input.proj.weight"]
    assert widened.config.in_channels == widened.config.out_channels == 10
    assert widened.config.extra_conditioning_channels == extra
    noisy, control, mask = torch.randn(2, 10, 8, 8), torch.randn(2, 10, 8, 8), torch.randn(2, extra, 8, 8)
    noisy[:, 4:] *= 100
    got = residuals(widened, noisy, torch.cat([control, mask], dim=1))
    want = residuals(model, noisy[:, :4], torch.cat([control[:, :4], mask], dim=1))
    assert_close(got, want, 1e-5)
    assert want.std() > 0.05


def upgraded(pipe: Any) -> Any:
    pipe = davae.upgrade(pipe)
    pipe.vae.calibrate(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pipeline_with_a_controlnet_is_upgraded_whole() -> None:
    model = controlnet()
    pipe = StableDiffusion3ControlNetPipeline(**SD3.make().components, controlnet=model)
    after = upgraded(pipe)
    assert after.controlnet.config.in_channels == 8
    assert model.config.in_channels == 4
    image = torch.rand(1, 3, 64, 64)
    picture = SD3.draw(after, control_image=image)
    assert picture.shape == (1, 64, 64, 3)
    other = SD3.draw(after, control_image=1 - image)
    assert abs(picture - other).max() > 1e-3


def test_embedders_that_a_pipeline_lends_are_lent_anew() -> None:
    # SD3.5-Large: no embedder for the noisy latent, no text.
    model = controlnet(use_pos_embed=False, joint_attention_dim=None, qk_norm=None)
    assert model.pos_embed is None
    assert davae.widen(model, 4).config.in_channels == 8
    pipe = StableDiffusion3ControlNetPipeline(**SD3.make().components, controlnet=model)
    assert model.pos_embed is not None
    after = upgraded(pipe)
    assert torch.equal(after.controlnet.pos_embed.proj.weight, after.transformer.pos_embed.proj.weight)
    assert SD3.draw(after, control_image=torch.rand(1, 3, 64, 64)).shape == (1, 64, 64, 3)


def test_inpainting_controlnet_works_where_inpainting_does_not() -> None:
    model = controlnet(extra_conditioning_channels=1)
    after = upgraded(StableDiffusion3ControlNetInpaintingPipeline(**SD3.make().components, controlnet=model))
    image, mask = torch.rand(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    assert SD3.draw(after, control_image=image, control_mask=mask).shape == (1, 64, 64, 3)


def test_several_controlnets_are_refused() -> None:
    several = SD3MultiControlNetModel([controlnet(), controlnet()])
    pipe = StableDiffusion3ControlNetPipeline(**SD3.make().components, controlnet=several)
    with pytest.raises(
        ValueError, match="Cannot upgrade a SD3MultiControlNetModel; known transformers: .*SD3Control"
    ):
        davae.upgrade(pipe)


def test_controlnet_of_another_latent_is_refused() -> None:
    pipe = StableDiffusion3ControlNetPipeline(
        **SD3.make().components, controlnet=controlnet(in_channels=8, out_channels=8)
    )
    with pytest.raises(
        ValueError, match="not a pair: AutoencoderKL has 4 latent channels, SD3ControlNetModel takes 8"
    ):
        davae.upgrade(pipe)
