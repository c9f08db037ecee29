"""`davae.upgrade`: what it shares, keeps and refuses; the other pipelines that take upgraded parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    HunyuanDiTPAGPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

import davae
from backbones.families import PIPELINES
from backbones.transformers import flux_transformer, sd3_transformer
from conftest import assert_close
from models.families import sd3
from tiny_text import MAX_LENGTH, tiny_text_pipeline

SD3, FLUX = PIPELINES["sd3"], PIPELINES["flux"]
CPU = torch.device("cpu")


def upgraded(pipe: Any, **settings: Any) -> Any:
    """Ready to draw."""
    pipe = davae.upgrade(pipe, **settings)
    pipe.vae.calibrate(torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_preview_of_the_drawn_latent_is_the_pretrained_image_enlarged() -> None:
    pipe = SD3.make()
    after = upgraded(pipe)
    noise = torch.randn(1, 8, 8, 8)
    settings = {"output_type": "latent", "num_inference_steps": 4}
    want = SD3.draw(pipe, upgraded=False, latents=noise[:, :4], **settings)
    got = SD3.draw(after, latents=noise, **settings)
    assert_close(got[:, :4], want, 1e-5)
    small = pipe.vae.decode(want / 0.2 + 0.06).sample
    large = after.vae.preview(got / 0.2 + 0.06)
    assert_close(large, torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic"), 1e-4)


@pytest.mark.parametrize(
    ("family", "pipeline_class"), [(SD3, StableDiffusion3Img2ImgPipeline), (FLUX, FluxImg2ImgPipeline)]
)
def test_image_to_image_takes_the_same_parts(family: Any, pipeline_class: Any) -> None:
    after = upgraded(family.make())
    pipe = pipeline_class(**after.components)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 64, 64)
    images = family.draw(pipe, image=image, strength=0.5)
    assert images.shape == (1, 64, 64, 3)
    other = family.draw(pipe, image=1 - image, strength=0.5)
    assert np.abs(images - other).max() > 1e-3
    assert type(AutoPipelineForImage2Image.from_pipe(after)) is pipeline_class


def test_flux_inpaints_with_upgraded_parts() -> None:
    pipe = FluxInpaintPipeline.from_pipe(FLUX.make())
    after = upgraded(pipe)
    assert type(after) is FluxInpaintPipeline
    image, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    kept = FLUX.draw(after, image=image, mask_image=mask, strength=1.0, output_type="latent")
    joint = after.vae.encode(2 * image - 1).latent_dist.mode()
    tokens = (joint - after.vae.config.shift_factor) * after.vae.config.scaling_factor
    tokens = after._pack_latents(tokens, 1, 8, 8, 8).unflatten(1, (4, 4))
    # The half that is not painted; the detail of an image is a draw.
    assert_close(kept.unflatten(1, (4, 4))[:, :, :2, :16], tokens[:, :, :2, :16], 1e-4)
    assert FLUX.draw(after, image=image, mask_image=mask, strength=1.0).shape == (1, 64, 64, 3)


def test_image_size_sets_the_default_size() -> None:
    pipe = SD3.make()
    small = upgraded(pipe, image_size=48)
    assert small.transformer.config.sample_size == 6
    assert small.default_sample_size * small.vae_scale_factor == 48
    assert pipe.transformer.config.sample_size == 8
    assert SD3.draw(small, height=None, width=None).shape == (1, 48, 48, 3)
    hunyuan = davae.upgrade(PIPELINES["hunyuan"].make(), image_size=96)
    assert hunyuan.transformer.config.sample_size == hunyuan.default_sample_size == 6


def test_source_and_shared_parts_are_left_as_they_were() -> None:
    pipe = SD3.make()
    vae, transformer = pipe.vae, pipe.transformer
    after = davae.upgrade(pipe)
    assert pipe.vae is vae
    assert pipe.transformer is transformer
    assert after.scheduler is pipe.scheduler
    assert transformer.config.in_channels == 4
    assert all(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "sana"])
def test_precision_is_kept(name: str) -> None:
    after = davae.upgrade(PIPELINES[name].make().to(torch.bfloat16))
    assert after.vae.dtype == after.transformer.dtype == torch.bfloat16


def test_parts_that_are_no_pair_are_refused() -> None:
    pipe = SD3.pipeline(sd3(latent_channels=8), sd3_transformer())
    with pytest.raises(ValueError, match="not a pair: AutoencoderKL has 8 latent channels, SD3Trans.* takes 4"):
        davae.upgrade(pipe)
    # Packed: 4 features of a token are one latent channel.
    pipe = FLUX.pipeline(sd3(), flux_transformer(in_channels=32))
    with pytest.raises(ValueError, match="has 4 latent channels, FluxTransformer2DModel takes 8"):
        davae.upgrade(pipe)


def test_sizes_between_tokens_are_refused() -> None:
    for size in (40, 8):
        with pytest.raises(ValueError, match=rf"multiple of 16 \(compression 8 x patch 2\); got {size}. Use"):
            davae.upgrade(SD3.make(), image_size=size)


@pytest.mark.parametrize("name", ["flux", "flux2", "pixart"])
def test_sizes_that_nothing_stores_belong_into_the_call(name: str) -> None:
    with pytest.raises(ValueError, match="got image_size 64. .*height=64, width=64"):
        davae.upgrade(PIPELINES[name].make(), image_size=64)


def test_a_model_of_one_size_keeps_it() -> None:
    with pytest.raises(ValueError, match="draws one size only; got image_size 128, allowed 64"):
        davae.upgrade(PIPELINES["dit"].make(), image_size=128)
    assert davae.upgrade(PIPELINES["dit"].make(), image_size=64).transformer.config.sample_size == 8


def test_pipelines_that_cannot_draw_it_are_refused() -> None:
    inpaint = StableDiffusion3InpaintPipeline.from_pipe(SD3.make())
    with pytest.raises(ValueError, match="Cannot upgrade a StableDiffusion3InpaintPipeline: .*16 channels only"):
        davae.upgrade(inpaint)
    components = PIPELINES["hunyuan"].make().components
    with pytest.raises(ValueError, match="Cannot upgrade a HunyuanDiTPAGPipeline: .*compression 8 only"):
        davae.upgrade(HunyuanDiTPAGPipeline(**components, requires_safety_checker=False, pag_applied_layers="1"))


def test_pipelines_without_a_transformer_are_refused() -> None:
    unet = UNet2DConditionModel(
        block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    vae = AutoencoderKL(norm_num_groups=4, block_out_channels=(8,))
    pipe = StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=SD3.make().scheduler, **nothing, requires_safety_checker=False
    )
    with pytest.raises(ValueError, match="StableDiffusionPipeline: .*got scheduler, unet, vae. U-Nets are not"):
        davae.upgrade(pipe)


def test_what_is_no_pretrained_pipeline_is_told_which_call_takes_it() -> None:
    pipe = SD3.make()
    after = davae.upgrade(pipe)
    for given, answer in (
        ("org/name", r"got the name 'org/name'. Load it first: .*from_pretrained\('org/name'\), then davae.upgrade"),
        (Path("pipeline"), "got the name 'pipeline'. Load it first"),
        (None, "got None"),
        (2, "got 2"),
        (type(pipe), "got the class StableDiffusion3Pipeline. Give what its from_pretrained loads"),
        (pipe.vae, r"got a AutoencoderKL, an autoencoder. Call davae.AutoencoderDA.from_base\(vae, scale=2\)"),
        (pipe.transformer, r"got a SD3Transformer2DModel. .*davae.widen\(transformer, detail_channels=D\)"),
        (after, "StableDiffusion3Pipeline that is upgraded already. Draw with it, or .*load_finetuned"),
        (after.vae, r"an autoencoder that is upgraded already. .*davae.widen\(transformer, detail_channels=4\)"),
    ):
        with pytest.raises(ValueError, match=f"davae.upgrade takes a pretrained pipeline of diffusers; .*{answer}"):
            davae.upgrade(given)
    with pytest.raises(ValueError, match="has no vae or no transformer; got scheduler, transformer. Load the pip"):
        davae.upgrade(SD3.pipeline(None, pipe.transformer))


def test_parts_are_told_which_call_takes_them() -> None:
    pipe = SD3.make()
    for given, answer in (
        ("org/name", "got the name 'org/name'. Load it first"),
        (pipe, r"got a StableDiffusion3Pipeline. Call davae.upgrade\(pipe\)"),
        (pipe.vae, "got a AutoencoderKL, an autoencoder. Call davae.AutoencoderDA.from_base"),
        (16, "got 16"),
        (torch.nn.Linear(2, 2), "got a Linear"),
    ):
        with pytest.raises(ValueError, match=f"davae.widen takes a diffusion transformer .*; .*{answer}"):
            davae.widen(given, detail_channels=4)
    for given, answer in (
        ("org/name", "got the name 'org/name'. Load it first"),
        (pipe, r"Call davae.upgrade\(pipe\)"),
        (pipe.transformer, "If it is a diffusion transformer, call davae.widen"),
        (davae.AutoencoderDA.from_base(pipe.vae), "upgraded already"),
    ):
        with pytest.raises(ValueError, match=f"from_base takes a pretrained autoencoder .*; .*{answer}"):
            davae.AutoencoderDA.from_base(given)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"scale": 1024}, "supports scale 2 and 4; got 1024. The size of an image, in pixels, is image_size"),
        ({"scale": 2.0}, "supports scale 2 and 4; got 2.0"),
        ({"detail_channels": "16"}, "at least one detail channel; got '16'"),
        ({"detail_channels": 0}, "at least one detail channel; got 0"),
        ({"image_size": "1024"}, "image_size is a whole number of pixels; got '1024'"),
    ],
)
def test_settings_in_the_wrong_place_are_explained(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        davae.upgrade(SD3.make(), **settings)


def test_weights_that_are_not_plain_are_refused_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_text_pipeline().to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    monkeypatch.setattr(davae.AutoencoderDA, "__init__", lambda *_: pytest.fail("the autoencoder was copied"))
    with pytest.raises(ValueError, match="Cannot upgrade this SD3Transformer2DModel: layerwise casting stores"):
        davae.upgrade(pipe)
    with pytest.raises(ValueError, match="Cannot widen this SD3Transformer2DModel: layerwise casting stores"):
        davae.widen(pipe.transformer, detail_channels=4)


def test_a_pipeline_made_from_an_upgraded_one_is_given_its_autoencoder() -> None:
    """diffusers' `from_pipe` passes over a part whose class is not the one that the pipeline names."""
    after = upgraded(SD3.make())
    pipe = StableDiffusion3Img2ImgPipeline.from_pipe(after, vae=after.vae)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is after.vae
    assert SD3.draw(pipe, image=torch.rand(1, 3, 64, 64), strength=0.5).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.to(torch.bfloat16),
        lambda pipe: pipe.vae.enable_tiling(),
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        lambda pipe: pipe.vae.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        lambda pipe: pipe.transformer.enable_group_offload(CPU, CPU, offload_type="leaf_level"),
        lambda pipe: cpu_offload(pipe.transformer, CPU),
        lambda pipe: cpu_offload(pipe.vae, CPU),
    ],
    ids=["dtype", "tiling", "slicing", "fp8", "fp8 autoencoder", "groups", "offload", "offload autoencoder"],
)
def test_what_is_done_after_the_upgrade_draws(change: Any) -> None:
    after = upgraded(tiny_text_pipeline())
    want = draw(after)
    change(after)
    images = draw(after)
    assert images.shape == (1, 32, 32, 3)
    assert np.abs(images - want).mean() < 0.1
    pipe = StableDiffusion3Img2ImgPipeline(**after.components)
    pipe.set_progress_bar_config(disable=True)
    assert draw(pipe, image=torch.rand(1, 3, 32, 32), strength=1.0).shape == (1, 32, 32, 3)


def draw(pipe: Any, **settings: Any) -> Any:
    """From a prompt, with the pipeline's own text encoders."""
    generator = torch.Generator().manual_seed(3)
    sizes = {} if "image" in settings else {"height": 32, "width": 32}
    settings |= {"num_inference_steps": 2, "max_sequence_length": MAX_LENGTH, "output_type": "np"}
    return pipe("a matte red cube", generator=generator, **sizes, **settings).images


def test_an_upgraded_pipeline_is_saved_and_loaded(tmp_path: Path) -> None:
    after = upgraded(SD3.make())
    after.save_pretrained(tmp_path)
    absent = dict.fromkeys(name for name, part in after.components.items() if part is None)
    loaded = type(after).from_pretrained(tmp_path, **absent)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.vae, davae.AutoencoderDA)
    assert_close(torch.from_numpy(SD3.draw(loaded)), torch.from_numpy(SD3.draw(after)), 1e-5)
