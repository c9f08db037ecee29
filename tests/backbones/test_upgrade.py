"""`davae.upgrade` on a stock Stable Diffusion 3 pipeline of tiny real parts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file
from torch import Tensor

import davae
from conftest import assert_close

ENCODERS: dict[str, None] = dict.fromkeys(
    ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
)


def sd3_pipeline(vae_channels: int = 4) -> StableDiffusion3Pipeline:
    """f2 and patch 2: its default image of 16 px has 4 x 4 tokens."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=vae_channels,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=12,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(
        vae=vae.eval(), transformer=transformer.eval(), scheduler=scheduler, **ENCODERS, image_encoder=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def upgraded() -> StableDiffusion3Pipeline:
    pipe = davae.upgrade(sd3_pipeline())
    pipe.vae.calibrate(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "prompt_embeds": torch.randn(1, 5, 12, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 5, 12, generator=generator),
        "pooled_prompt_embeds": torch.randn(1, 10, generator=generator),
        "negative_pooled_prompt_embeds": torch.randn(1, 10, generator=generator),
    }


def draw(pipe: Any, **settings: Any) -> np.ndarray:
    settings = {
        "num_inference_steps": 2,
        "output_type": "np",
        "generator": torch.Generator().manual_seed(3),
    } | settings
    return pipe(**prompts(), **settings).images


def test_stock_pipeline_draws_twice_the_side_on_the_same_grid(upgraded: StableDiffusion3Pipeline) -> None:
    assert type(upgraded) is StableDiffusion3Pipeline
    assert isinstance(upgraded.vae, davae.AutoencoderDA)
    assert upgraded.vae_scale_factor == 4
    latents: list[tuple[int, ...]] = []

    def look(_pipe: Any, _step: int, _timestep: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(tuple(values["latents"].shape))
        return values

    images = draw(upgraded, callback_on_step_end=look)
    assert images.shape == (1, 32, 32, 3)  # 16 px before
    assert latents == [(1, 8, 8, 8)] * 2  # base + detail channels; the grid as before
    assert np.isfinite(images).all()
    assert draw(upgraded, height=24, width=40).shape == (1, 24, 40, 3)


def test_base_prediction_equals_the_pretrained_for_any_detail() -> None:
    pipe = sd3_pipeline()
    upgraded = davae.upgrade(pipe, detail_channels=6)
    latent = torch.randn(1, 10, 8, 8)
    latent[:, 4:] *= 30
    arguments = prompts()["prompt_embeds"], prompts()["pooled_prompt_embeds"], torch.tensor([400.0])
    with torch.no_grad():
        want = pipe.transformer(latent[:, :4], *arguments).sample
        got = upgraded.transformer(latent, *arguments).sample
    assert_close(got[:, :4], want, 1e-5)
    assert not got[:, 4:].any()


@torch.no_grad()
def test_whole_trajectory_of_the_base_is_the_pretrained_one(upgraded: StableDiffusion3Pipeline) -> None:
    torch.manual_seed(0)  # the same weights as the fixture's
    pipe = sd3_pipeline()
    assert torch.equal(pipe.transformer.proj_out.bias, upgraded.transformer.proj_out.bias.view(4, 8)[:, :4].flatten())
    noise = torch.randn(1, 8, 8, 8)
    settings = {"output_type": "latent", "num_inference_steps": 4}
    want = draw(pipe, latents=noise[:, :4], **settings)
    got = draw(upgraded, latents=noise, **settings)
    assert_close(got[:, :4], want, 1e-5)
    # And so the preview is the pretrained image, enlarged.
    small = pipe.vae.decode(want / 0.5 + 0.2).sample
    large = upgraded.vae.preview(got / 0.5 + 0.2)
    assert_close(large, torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic"), 1e-4)


FRESH_PROCESS = """
import sys, torch
from safetensors.torch import load_file
import davae
from diffusers import StableDiffusion3Pipeline
folder = sys.argv[1]
names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
pipe = StableDiffusion3Pipeline.from_pretrained(folder, **dict.fromkeys(names))
assert isinstance(pipe.vae, davae.AutoencoderDA), type(pipe.vae)
want = load_file(f"{folder}/want.safetensors")
image = torch.from_numpy(
    pipe(
        **{name: value for name, value in want.items() if name.endswith("embeds")},
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(3),
    ).images
)
torch.testing.assert_close(image, want["image"], rtol=1e-4, atol=1e-4)
"""


def test_a_fresh_process_draws_the_same_image(upgraded: StableDiffusion3Pipeline, tmp_path: Path) -> None:
    upgraded.save_pretrained(tmp_path)
    image = torch.from_numpy(draw(upgraded)).contiguous()
    assert image.std() > 1e-3  # not a blank that any model would draw
    save_file({"image": image, **prompts()}, tmp_path / "want.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "will be ignored" not in answer.stderr


def test_image_to_image_takes_the_same_parts(upgraded: StableDiffusion3Pipeline) -> None:
    pipe = StableDiffusion3Img2ImgPipeline(**upgraded.components)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32)
    images = draw(pipe, image=image, strength=0.5, height=32, width=32)
    assert images.shape == (1, 32, 32, 3)
    other = draw(pipe, image=1 - image, strength=0.5, height=32, width=32)
    assert np.abs(images - other).max() > 1e-3


def test_image_size_sets_the_default_size() -> None:
    pipe = sd3_pipeline()
    small = davae.upgrade(pipe, image_size=24)
    assert small.transformer.config.sample_size == 6
    assert small.default_sample_size * small.vae_scale_factor == 24
    assert pipe.transformer.config.sample_size == 8
    small.vae.calibrate(torch.zeros(4), torch.ones(4))
    small.set_progress_bar_config(disable=True)
    assert draw(small).shape == (1, 24, 24, 3)


def test_source_and_shared_parts_are_left_as_they_were() -> None:
    pipe = sd3_pipeline()
    vae, transformer = pipe.vae, pipe.transformer
    upgraded = davae.upgrade(pipe)
    assert pipe.vae is vae
    assert pipe.transformer is transformer
    assert upgraded.scheduler is pipe.scheduler
    assert transformer.config.in_channels == 4
    assert all(parameter.requires_grad for parameter in vae.parameters())


def test_precision_is_kept() -> None:
    upgraded = davae.upgrade(sd3_pipeline().to(torch.bfloat16))
    assert upgraded.vae.dtype == upgraded.transformer.dtype == torch.bfloat16


def test_impossible_upgrades_are_explained() -> None:
    with pytest.raises(ValueError, match="not a pair: AutoencoderKL has 8 latent channels, SD3Trans.* takes 4"):
        davae.upgrade(sd3_pipeline(vae_channels=8))
    for size in (20, 4):
        with pytest.raises(ValueError, match=rf"multiple of 8 \(compression 4 x patch 2\); got {size}"):
            davae.upgrade(sd3_pipeline(), image_size=size)
