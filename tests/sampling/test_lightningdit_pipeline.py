"""`LightningDiTPipeline` over a plain and over a structured autoencoder."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

import davae
from conftest import assert_close
from davae.models.declared_scaling import scaling_of
from davae.sampling.denoise import draw_noise
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline


def autoencoder() -> AutoencoderDC:
    """f2 with 4 channels."""
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=8,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(0, 1),
        decoder_layers_per_block=(0, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.7,
    ).eval()


@torch.no_grad()
def transformer(channels: int) -> davae.LightningDiT:
    model = davae.LightningDiT(
        sample_size=4, in_channels=channels, hidden_size=32, num_layers=2, num_attention_heads=2, num_classes=5
    ).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pipeline(kind: str) -> LightningDiTPipeline:
    vae: Any = autoencoder()
    if kind != "plain":
        vae = davae.AutoencoderDA.from_base(vae).eval()
        vae.calibrate(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
    if kind == "lagging":
        scheduler = davae.DetailLagScheduler(4, 4, detail_lag=0.3, shift=1 / 0.3)
    pipe = LightningDiTPipeline(vae, transformer(vae.config.latent_channels), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(params=["plain", "structured"])
def pipe(request: pytest.FixtureRequest) -> LightningDiTPipeline:
    return pipeline(request.param)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe: LightningDiTPipeline, labels: list[int], *seeds: int, **settings: Any) -> torch.Tensor:
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "pt"} | settings
    return pipe(labels, generator=generators(*seeds), **settings).images


def test_an_image_does_not_depend_on_its_batch(pipe: LightningDiTPipeline) -> None:
    together = draw(pipe, [0, 3, 1, 3], 10, 11, 12, 13)
    assert together.shape == (4, 3, pipe.image_size, pipe.image_size)
    for row, label in enumerate([0, 3, 1, 3]):
        assert_close(draw(pipe, [label], 10 + row), together[row : row + 1], 1e-4)
    assert_close(draw(pipe, [3, 1], 13, 12), together[[3, 2]], 1e-4)
    assert (together[1] - together[3]).abs().max() > 1e-2  # same label, other noise
    assert (draw(pipe, [2], 10) - together[:1]).abs().max() > 1e-3  # same noise, other label


def test_generators_and_drawn_noise_are_the_same_noise(pipe: LightningDiTPipeline) -> None:
    config = pipe.transformer.config
    noise = draw_noise([10, 11], (config.in_channels, config.sample_size, config.sample_size))
    given = pipe([0, 3], num_inference_steps=4, latents=noise, output_type="latent").images
    drawn = draw(pipe, [0, 3], 10, 11, guidance_scale=1.0, output_type="latent")
    assert torch.equal(given, drawn)


def test_output_types(pipe: LightningDiTPipeline) -> None:
    size = pipe.image_size
    tensor = draw(pipe, [1], 5)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    array = draw(pipe, [1], 5, output_type="np")
    assert array.shape == (1, size, size, 3)
    np.testing.assert_allclose(array, tensor.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    (picture,) = draw(pipe, [1], 5, output_type="pil")
    assert isinstance(picture, Image.Image)
    assert picture.size == (size, size)
    np.testing.assert_allclose(np.asarray(picture) / 255, array[0], atol=1 / 255)
    latent = draw(pipe, [1], 5, output_type="latent")
    assert latent.shape == (1, pipe.transformer.config.in_channels, 4, 4)
    assert_close(pipe.decode(latent, "pt"), tensor, 1e-5)
    bare = pipe([1], 4, guidance_scale=2.0, generator=generators(5), output_type="pt", return_dict=False)
    assert_close(bare[0], tensor, 1e-6)


@torch.no_grad()
def test_decoding_undoes_what_the_transformer_sees(pipe: LightningDiTPipeline) -> None:
    image = torch.rand(1, 3, pipe.image_size, pipe.image_size) * 2 - 1
    encoded = pipe.vae.encode(image)
    stored = encoded.latent_dist.mode() if isinstance(pipe.vae, davae.AutoencoderDA) else encoded.latent
    seen = scaling_of(pipe.vae).normalise(stored)
    want = (pipe.vae.decode(stored).sample / 2 + 0.5).clamp(0, 1)
    assert_close(pipe.decode(seen, "pt"), want, 1e-4)


def test_every_step_is_reported(pipe: LightningDiTPipeline) -> None:
    steps: list[int] = []
    draw(pipe, [1], 5, on_step=lambda step, latents: steps.append(step))
    assert steps == [0, 1, 2, 3]


def test_image_size_follows_the_autoencoder() -> None:
    assert pipeline("plain").image_size == 8
    assert pipeline("structured").image_size == 16


@torch.no_grad()
def test_upgraded_pair_previews_the_pretrained_image() -> None:
    plain = pipeline("plain")
    upgraded = davae.upgrade(plain)
    assert type(upgraded) is LightningDiTPipeline
    assert upgraded.image_size == 2 * plain.image_size
    noise = draw_noise([1, 2], (8, 4, 4))
    settings: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    want = plain([0, 4], latents=noise[:, :4], **settings).images
    got = upgraded([0, 4], latents=noise, **settings).images
    assert_close(got[:, :4], want, 1e-5)
    assert torch.equal(got[:, 4:], noise[:, 4:])  # nothing moves the detail yet


def test_wrong_arguments_are_explained(pipe: LightningDiTPipeline) -> None:
    for label in (-1, 5):  # 5 means "no class"
        with pytest.raises(ValueError, match=rf"between 0 and 4; got \[{label}\]"):
            pipe([0, label])
    for seeds in ((1, 2, 3), (1,)):
        with pytest.raises(ValueError, match=f"2 images, {len(seeds)} generators"):
            draw(pipe, [0, 1], *seeds)


def test_strangers_are_no_pair() -> None:
    with pytest.raises(ValueError, match="has 4 latent channels, the transformer takes 6"):
        LightningDiTPipeline(autoencoder(), transformer(6), FlowMatchEulerDiscreteScheduler())


FRESH_PROCESS = """
import sys, torch
from safetensors.torch import load_file
import davae
for folder in sys.argv[1:]:
    pipe = davae.LightningDiTPipeline.from_pretrained(folder)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipe([0, 3], num_inference_steps=4, guidance_scale=2.0, generator=seeds, output_type="pt").images
    torch.testing.assert_close(images, load_file(f"{folder}/want.safetensors")["images"], rtol=1e-4, atol=1e-4)
"""


def test_a_fresh_process_draws_the_same_images(tmp_path: Path) -> None:
    folders = []
    for kind in ("plain", "structured", "lagging"):
        pipe, folder = pipeline(kind), tmp_path / kind
        pipe.save_pretrained(folder)
        save_file({"images": draw(pipe, [0, 3], 1, 2).contiguous()}, folder / "want.safetensors")
        folders.append(str(folder))
    command = [sys.executable, "-c", FRESH_PROCESS, *folders]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "will be ignored" not in answer.stderr


def test_a_fixed_grid_refuses_another_image_size() -> None:
    plain = pipeline("plain")
    assert davae.upgrade(plain, image_size=16).image_size == 16
    with pytest.raises(ValueError, match="draws one size only; got image_size 32, allowed 16"):
        davae.upgrade(plain, image_size=32)
