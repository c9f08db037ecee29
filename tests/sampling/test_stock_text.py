"""Drawing prompts with stock pipelines: noise, guidance interval, previews, other families, bad input."""

from collections.abc import Iterator, Sequence
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import davae
from backbones.families import PIPELINES
from conftest import assert_close
from davae.backbones.sd3 import SD3
from davae.models.adapter import geometry_of
from davae.sampling.denoise import draw_noise
from davae.sampling.grid import Grid
from davae.sampling.sampler import decode, preview
from davae.sampling.settings import SamplerSettings
from davae.sampling.stock_text import draw_encoded, encode, require_drawable
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from tiny_text import MAX_LENGTH, tiny_text_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
POOLED = "pooled_prompt_embeds"
PROMPTS = ["a red cube", "a striped sphere"]
CALL: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "steps": 6,
    "guidance_scale": 4.0,
}


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seed: int,
    *,
    height: int,
    width: int,
    negative: str = "",
    **settings: Any,
) -> Tensor:
    """Latents of an image a prompt, from consecutive seeds."""
    typed = TypedPrompts(pipe, prompts, MAX_LENGTH, negative)
    sampler = TextSampler(pipe, SamplerSettings(seed=seed, **settings), typed, (height, width))
    return sampler.latents(range(len(prompts)))


@pytest.fixture(scope="module")
def pipe() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        upgraded = davae.upgrade(tiny_text_pipeline(), scale=2, init="random")
    upgraded.set_progress_bar_config(disable=True)
    return upgraded


@pytest.fixture
def rows(pipe: Any) -> Iterator[list[int]]:
    """Rows of every forward of the transformer."""
    seen: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    yield seen
    hook.remove()


def times(pipe: Any, steps: int) -> list[float]:
    pipe.scheduler.set_timesteps(steps)
    return (1 - pipe.scheduler.sigmas[:-1]).tolist()


def test_the_stock_call_draws_the_same(pipe: Any) -> None:
    stock = pipe(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=4.0,
        negative_prompt="a box",
        max_sequence_length=MAX_LENGTH,
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        output_type="latent",
    ).images
    drawn = draw(pipe, PROMPTS, 3, **CALL, negative="a box")
    assert drawn.shape == (2, 8, 4, 4)
    assert_close(drawn, stock, 1e-5)


def test_an_image_does_not_depend_on_its_batch(pipe: Any) -> None:
    together = draw(pipe, PROMPTS, 3, **CALL)
    assert_close(draw(pipe, PROMPTS[1:], 4, **CALL), together[1:], 1e-5)
    assert not torch.equal(together[0], together[1])


def test_noise_of_the_base_channels_is_that_of_the_base_model() -> None:
    assert torch.equal(draw_noise([5, 6], (8, 4, 4))[:, :4], draw_noise([5, 6], (4, 4, 4)))


def test_the_base_channels_of_a_fresh_upgrade_are_what_the_base_model_draws() -> None:
    base = tiny_text_pipeline()
    fresh = davae.upgrade(base, scale=2)
    for pipe in (base, fresh):
        pipe.set_progress_bar_config(disable=True)
    settings = CALL | {"guidance_interval": (0.1, 0.6)}
    small = draw(base, PROMPTS, 3, **(settings | {"height": 16, "width": 16}))
    assert_close(draw(fresh, PROMPTS, 3, **settings)[:, :4], small, 1e-5)


def test_guidance_in_the_whole_interval_is_guidance(pipe: Any, rows: list[int]) -> None:
    full = draw(pipe, PROMPTS, 3, **CALL)
    # Through the callback, which the whole interval (0, 1) does without.
    switched = draw(pipe, PROMPTS, 3, **CALL, guidance_interval=(0.0, 0.999))
    assert torch.equal(full, switched)
    assert rows == [4] * 12


@pytest.mark.parametrize("interval", [(0.0, 0.3), (0.2, 0.5), (0.2, 1.0)])
def test_outside_the_interval_the_unconditional_half_is_not_computed(
    pipe: Any, rows: list[int], interval: tuple[float, float]
) -> None:
    inside = [interval[0] <= time <= interval[1] for time in times(pipe, 6)]
    drawn = draw(pipe, PROMPTS, 3, **CALL, guidance_interval=interval)
    assert rows == [4 if on else 2 for on in inside]
    assert 0 < sum(inside) < 6

    # The same by hand: both halves always, the guidance scale by time.
    sigmas = [1 - time for time in times(pipe, 6)] + [0.0]
    embedded = encode(pipe, PROMPTS, MAX_LENGTH) | {
        f"negative_{name}": tensor for name, tensor in encode(pipe, ["", ""], MAX_LENGTH).items()
    }
    latents = draw_noise([3, 4], (8, 4, 4))
    for step, on in enumerate(inside):
        halves = [
            _velocity(pipe, latents, sigmas[step], embedded[f"{prefix}prompt_embeds"], embedded[f"{prefix}{POOLED}"])
            for prefix in ("negative_", "")
        ]
        guided = halves[0] + (4.0 if on else 1.0) * (halves[1] - halves[0])
        latents = latents + (sigmas[step + 1] - sigmas[step]) * guided
    assert_close(drawn, latents, 1e-4)


@torch.no_grad()
def _velocity(pipe: Any, latents: Tensor, sigma: float, embeds: Tensor, pooled: Tensor) -> Tensor:
    timestep = torch.full((len(latents),), 1000 * sigma)
    return pipe.transformer(
        hidden_states=latents, encoder_hidden_states=embeds, pooled_projections=pooled, timestep=timestep
    ).sample


def test_the_pipeline_is_as_before_after_an_interval(pipe: Any) -> None:
    full = draw(pipe, PROMPTS, 3, **CALL)
    draw(pipe, PROMPTS, 3, **CALL, guidance_interval=(0.2, 0.5))
    assert torch.equal(draw(pipe, PROMPTS, 3, **CALL), full)


def test_a_schedule_that_starts_within_the_noise_is_refused_with_an_interval(pipe: Any) -> None:
    scheduler = pipe.scheduler
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    try:
        with pytest.raises(ValueError, match="starts at pure noise"):
            draw(pipe, PROMPTS, 3, **CALL, guidance_interval=(0.2, 1.0))
    finally:
        pipe.scheduler = scheduler


def test_encoded_prompts_need_no_text_encoders(pipe: Any) -> None:
    conditions, negatives = encode(pipe, PROMPTS, MAX_LENGTH), encode(pipe, [""], MAX_LENGTH)
    parts = {name: None if name.startswith(("text_", "tokenizer")) else p for name, p in pipe.components.items()}
    mute = diffusers.StableDiffusion3Pipeline(**parts)
    mute.set_progress_bar_config(disable=True)
    drawn = draw_encoded(mute, conditions, negatives, [3, 4], **CALL)
    assert torch.equal(drawn, draw(pipe, PROMPTS, 3, **CALL))


def test_without_guidance_there_is_one_half(pipe: Any, rows: list[int]) -> None:
    draw(pipe, PROMPTS, 3, **(CALL | {"guidance_scale": 1.0}))
    assert rows == [2] * 6


def test_decode_is_the_stock_decoding(pipe: Any) -> None:
    latents = draw(pipe, PROMPTS, 3, **CALL)
    stock = pipe(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=6,
        guidance_scale=4.0,
        max_sequence_length=MAX_LENGTH,
        latents=draw_noise([3, 4], (8, 4, 4)),
        output_type="pt",
    ).images
    images = decode(pipe, latents)
    assert images.shape == (2, 3, 32, 32)
    assert (images.float() / 255 - stock).abs().max() <= 0.5 / 255 + 1e-5


def test_preview_sees_the_base_channels_alone(pipe: Any) -> None:
    latents = draw(pipe, PROMPTS, 3, **CALL)
    shown = preview(pipe, latents)
    assert shown.shape == (2, 3, 32, 32)
    changed = latents.clone()
    changed[:, 4:] += 1
    assert torch.equal(preview(pipe, changed), shown)
    assert not torch.equal(decode(pipe, changed), decode(pipe, latents))
    changed[:, :4] += 1
    assert not torch.equal(preview(pipe, changed), shown)


def test_only_an_upgraded_pipeline_has_a_preview() -> None:
    with pytest.raises(ValueError, match="upgraded"):
        preview(tiny_text_pipeline(), torch.zeros(1, 4, 4, 4))


@pytest.mark.parametrize("name", ["flux", "sana"])
def test_other_families_draw_the_same_as_their_stock_call(name: str) -> None:
    family = PIPELINES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = davae.upgrade(family.make(), scale=2)
        inputs = family.inputs()
    pipe.set_progress_bar_config(disable=True)
    scale = 1.0 if name == "flux" else 4.0
    conditions = {key: value for key, value in inputs.items() if not key.startswith("negative")}
    negatives = {key.removeprefix("negative_"): value for key, value in inputs.items() if key.startswith("negative")}
    settings: dict[str, Any] = {"height": 64, "width": 64, "steps": 2, "guidance_scale": scale}
    drawn = draw_encoded(pipe, conditions, negatives, [3], **settings)
    channels = pipe.vae.config.latent_channels
    assert drawn.shape == (1, channels, 64 // pipe.vae.compression, 64 // pipe.vae.compression)

    stock = family.draw(pipe, output_type="pt", guidance_scale=scale, generator=[torch.Generator().manual_seed(3)])
    assert (decode(pipe, drawn).float() / 255 - stock).abs().max() <= 0.5 / 255 + 1e-4
    with pytest.raises(ValueError, match="does not let its guidance be changed"):
        draw_encoded(pipe, conditions, negatives, [3], **settings, guidance_interval=(0.1, 0.5))


def test_pixart_takes_prompts_as_text() -> None:
    family = PIPELINES["pixart"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = davae.upgrade(family.make(), scale=2)
    pipe.set_progress_bar_config(disable=True)
    seen: dict[str, Any] = {}
    inputs = family.inputs()

    def encode_prompt(prompt: list[str], guided: bool, negative_prompt: list[str], **_: Any) -> tuple[Tensor, ...]:
        seen.update(prompt=prompt, negative=negative_prompt)
        names = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
        return tuple(inputs[name].expand(len(prompt), *inputs[name].shape[1:]) for name in names)

    pipe.encode_prompt = encode_prompt
    drawn = draw(pipe, PROMPTS, 3, height=64, width=64, steps=2, guidance_scale=4.0, negative="box")
    assert drawn.shape[0] == 2
    assert seen == {"prompt": PROMPTS, "negative": ["box", "box"]}


def test_flux_takes_no_negative_prompt() -> None:
    pipe = PIPELINES["flux"].make()
    with pytest.raises(ValueError, match="no negative prompt"):
        TypedPrompts(pipe, ["a"], negative="b")
    with pytest.raises(ValueError, match="no negative prompt"):
        require_drawable("FluxPipeline", 3.5, negative_prompt="b")
    TypedPrompts(pipe, ["a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 40}, r"Height must be a multiple of 16 \(compression 8 x patch 2\); got 40. Use 32"),
        ({"width": 0}, "Width must be a multiple of 16"),
        ({"width": 144}, "beyond the transformer's positions; got 144, allowed is up to 128"),
        ({"guidance_scale": 0.0}, "at least 1"),
        ({"guidance_interval": (0.5, 0.5)}, "start < end"),
    ],
)
def test_wrong_settings_are_refused(pipe: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(pipe, PROMPTS, 3, **(CALL | change))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (-0.1, 0.5), (0.5, 1.5), (0.7, 0.2)])
def test_what_is_no_interval_is_refused(pipe: Any, interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="start < end"):
        require_drawable("StableDiffusion3Pipeline", 2.0, interval)
    with pytest.raises(ValueError, match="start < end"):
        draw_encoded(pipe, encode(pipe, PROMPTS, MAX_LENGTH), None, [3, 4], **CALL, guidance_interval=interval)


def test_a_seed_an_image(pipe: Any) -> None:
    conditions = encode(pipe, PROMPTS, MAX_LENGTH)
    with pytest.raises(ValueError, match="2 prompts and 1 seeds"):
        draw_encoded(pipe, conditions, encode(pipe, [""], MAX_LENGTH), [3], **CALL)


def test_a_pipeline_of_another_kind_is_refused(pipe: Any) -> None:
    other, settings = PIPELINES["hunyuan"].make(), SamplerSettings(steps=1, guidance_scale=2.0)
    message = "Cannot draw text with a HunyuanDiTPipeline; allowed are .*StableDiffusion3Pipeline"
    with pytest.raises(ValueError, match=message):
        TypedPrompts(other, ["a"])
    with pytest.raises(ValueError, match=message):
        TextSampler(other, settings, TypedPrompts(pipe, ["a"]), (64, 64))
    with pytest.raises(ValueError, match=message):
        draw_encoded(other, {"prompt": ["a"]}, None, [0], height=64, width=64, steps=1, guidance_scale=2.0)


def test_a_grid_is_known_from_configs(pipe: Any) -> None:
    base = {**pipe.vae.base_vae.config, "_class_name": "AutoencoderKL"}
    structured = {**pipe.vae.config, "_class_name": "AutoencoderDA"}
    assert (geometry_of(base).compression, geometry_of(structured).compression) == (4, 8)
    grid = Grid.of(SD3, pipe.transformer.config, geometry_of(structured).compression)
    assert (grid.compression, grid.unit, grid.default, grid.most) == (8, 16, 32, 8)
    assert grid.latent_size(32, 48) == (4, 6)
