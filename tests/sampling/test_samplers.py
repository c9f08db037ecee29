"""Samplers: an image from its own seed and condition, in any batch; decoding in parts, enlarging before rounding."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

import davae
from conftest import assert_close
from davae.backbones.pair import Pair
from davae.cli import main
from davae.core.pixels import enlarge, signed_to_unit, unit_to_uint8
from davae.models.adapter import UpgradedAdapter, adapt
from davae.recipe import RecipeError, parse_recipe
from davae.sampling import class_sampler, sampler
from davae.sampling.class_sampler import ClassSampler
from davae.sampling.sampler import DECODED_AT_ONCE, Sampler, computing, decode, decoder_parts, preview
from davae.sampling.settings import Labels, SamplerSettings
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from tiny_pair import build_tiny_pair
from tiny_text import MAX_LENGTH, tiny_text_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")

State = dict[str, Tensor]
KEYS = Path(__file__).parents[1] / "convert" / "keys"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> davae.LightningDiTPipeline:
    """18 classes, 16 px."""
    return Pair(build_tiny_pair(tmp_path_factory.mktemp("pair"))).load()


@pytest.fixture(scope="module")
def upgraded_text() -> Any:
    """SD3, 32 px."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return davae.upgrade(tiny_text_pipeline(), scale=2, init="random")


def of_classes(pair: davae.LightningDiTPipeline, labels: Labels = "balanced", **settings: Any) -> ClassSampler:
    return ClassSampler(pair, SamplerSettings(**({"steps": 2, "guidance_scale": 2.0, "seed": 5} | settings)), labels)


def of_text(pipeline: Any, size: tuple[int, int] = (32, 32), **settings: Any) -> TextSampler:
    prompts = TypedPrompts(pipeline, ["a red cube", "a blue box", "a striped sphere"], MAX_LENGTH)
    return TextSampler(pipeline, SamplerSettings(**({"steps": 2, "guidance_scale": 2.0} | settings)), prompts, size)


@pytest.mark.parametrize("labels", ["balanced", "random"])
def test_an_image_is_a_function_of_its_number(pair: davae.LightningDiTPipeline, labels: Labels) -> None:
    classes = of_classes(pair, labels)
    together = classes.latents([3, 20, 21])
    assert together.shape == (3, 4, 4, 4)
    assert together.dtype == torch.float32
    assert_close(classes.latents([21, 3]), together[[2, 0]])
    assert_close(classes.latents(range(2, 4))[1:], together[:1])
    assert (of_classes(pair, seed=6).latents([3]) - of_classes(pair).latents([3])).abs().max() > 1e-2


def test_an_image_of_a_prompt_is_a_function_of_its_number(upgraded_text: Any) -> None:
    prompts = of_text(upgraded_text, seed=5)
    together = prompts.latents([1, 3, 5])
    assert together.shape == (3, 8, 4, 4)
    assert together.dtype == torch.float32
    assert_close(prompts.latents([5, 1]), together[[2, 0]])
    assert prompts.captions([1, 3, 5]) == ["a blue box", "a red cube", "a striped sphere"]
    # Image 4 is of the prompt of image 1, from another seed: 5 + 4 = 8 + 1.
    assert_close(of_text(upgraded_text, seed=8).latents([1]), prompts.latents([4]))
    assert (prompts.latents([4]) - together[:1]).abs().max() > 1e-2


def test_seeds_follow_the_number(pair: davae.LightningDiTPipeline) -> None:
    generator = torch.Generator().manual_seed(5 + 20)
    want = pair([20 % 18], 2, guidance_scale=2.0, generator=generator, output_type="latent").images
    assert_close(of_classes(pair).latents([20]), want)


def test_classes_are_balanced_or_drawn(pair: davae.LightningDiTPipeline) -> None:
    balanced = of_classes(pair).labels(range(40))
    assert balanced == [index % 18 for index in range(40)]
    random = of_classes(pair, "random").labels(range(3000))
    assert random == of_classes(pair, "random", steps=3).labels(range(3000))
    assert random[100:110] == of_classes(pair, "random").labels(range(100, 110))
    counts = torch.bincount(torch.tensor(random), minlength=18)
    assert len(counts) == 18
    # 3000 draws of 18 classes: 167 each, standard deviation 12.5.
    assert (counts - 3000 / 18).abs().max() < 5 * 12.5
    assert of_classes(pair, "random", seed=6).labels(range(100)) != random[:100]
    assert of_classes(pair).captions([2, 19]) == ["class 2", "class 1"]
    assert of_classes(pair).warning is None


def test_decoding_in_parts_changes_nothing(pair: davae.LightningDiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = of_classes(pair)
    latents = classes.latents(range(5))
    whole = classes.images(latents)
    assert whole.shape == (5, 3, 16, 16)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, unit_to_uint8(pair.decode(latents, output_type="pt")))
    monkeypatch.setattr(sampler, "DECODED_AT_ONCE", 2)
    assert [len(part) for part in decoder_parts(pair, latents)] == [2, 2, 1]
    assert (classes.images(latents).int() - whole.int()).abs().max() <= 1


def test_large_images_are_decoded_in_smaller_parts(upgraded_text: Any) -> None:
    positions = 1024 // upgraded_text.vae.compression
    for side, parts in ((positions // 8, [DECODED_AT_ONCE, 4]), (positions, [4] * 9), (4 * positions, [1] * 36)):
        latents = torch.zeros(1, 1, 1, 1).expand(36, 1, side, side)
        assert [len(part) for part in decoder_parts(upgraded_text, latents)] == parts


@torch.no_grad()
def test_images_are_enlarged_by_the_one_bicubic_before_they_are_rounded(
    pair: davae.LightningDiTPipeline,
) -> None:
    base = of_text(tiny_text_pipeline(), (16, 16))
    samplers: list[tuple[Sampler, Any]] = [(of_classes(pair), pair), (base, base.pipeline)]
    for current, pipeline in samplers:
        latents = current.latents([0, 1])
        unit = signed_to_unit(adapt(pipeline.vae).decode(latents))
        for size, shape in ((32, (32, 32)), ((48, 32), (48, 32))):
            larger = current.images(latents, size)
            assert larger.shape == (2, 3, *shape)
            assert torch.equal(larger, unit_to_uint8(enlarge(unit, size)))
        rounded_twice = unit_to_uint8(enlarge(unit_to_uint8(unit).float() / 255, 32))
        assert not torch.equal(rounded_twice, current.images(latents, 32))


@torch.no_grad()
def test_decode_and_preview_are_rounded_images(upgraded_text: Any) -> None:
    latents = of_text(upgraded_text).latents([0, 1])
    adapter = adapt(upgraded_text.vae)
    assert isinstance(adapter, UpgradedAdapter)
    for images, signed in (
        (decode(upgraded_text, latents), adapter.decode(latents)),
        (of_text(upgraded_text).images(latents), adapter.decode(latents)),
        (preview(upgraded_text, latents), adapter.preview(latents)),
    ):
        assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.uint8)
        assert torch.equal(images, ((signed / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))


def test_half_precision_and_guided_channels_reach_the_transformer(pair: davae.LightningDiTPipeline) -> None:
    exact = of_classes(pair).latents([0, 1])
    rounded = of_classes(pair, precision="bf16").latents([0, 1])
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    first = of_classes(pair, guidance_channels=3, steps=1).latents([0, 1])
    guided, plain = (of_classes(pair, guidance_scale=scale, steps=1).latents([0, 1]) for scale in (2.0, 1.0))
    assert_close(first[:, :3], guided[:, :3], 1e-6)
    assert_close(first[:, 3:], plain[:, 3:], 1e-6)
    late = of_classes(pair, guidance_interval=(0.9, 1.0), steps=1).latents([0, 1])
    assert_close(late, plain, 1e-6)


def test_more_guided_channels_than_there_are_is_refused(pair: davae.LightningDiTPipeline) -> None:
    with pytest.raises(
        ValueError, match=r"guidance_channels must be at most the latent's \d+ channels, or null; got 999"
    ):
        of_classes(pair, guidance_channels=999)


def test_text_pipelines_compute_in_half_precision_and_keep_their_state(upgraded_text: Any) -> None:
    exact = of_text(upgraded_text, steps=3).latents([0])
    rounded = of_text(upgraded_text, steps=3, precision="bf16").latents([0])
    assert not torch.equal(rounded, rounded.bfloat16().float())
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()
    assert not upgraded_text.transformer._forward_hooks


def test_prompts_are_encoded_outside_of_autocast(upgraded_text: Any) -> None:
    seen: list[bool] = []
    hooks = [
        part.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        for part in (upgraded_text.text_encoder, upgraded_text.text_encoder_3, upgraded_text.transformer)
    ]
    of_text(upgraded_text, steps=1, precision="bf16").latents([0])
    for hook in hooks:
        hook.remove()
    assert seen == [False] * 4 + [True]  # two encoders for the prompt and for the negative one, then the transformer


def test_computing_leaves_nothing_behind_after_an_error(upgraded_text: Any) -> None:
    with pytest.raises(KeyboardInterrupt), computing(upgraded_text.transformer, "bf16"):
        raise KeyboardInterrupt
    assert not upgraded_text.transformer._forward_hooks
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("interval", ["[0.5, 0.2]", "[0.3, 0.3]", "[-0.1, 1.0]", "[0.0, 1.5]"])
def test_an_impossible_interval_is_refused(interval: str) -> None:
    values = {"name": "x", "data": {"kind": "solids"}, "sample": {"guidance_interval": json.loads(interval)}}
    with pytest.raises(
        RecipeError, match=r"guidance_interval(\.\d: must be a number in \[0, 1\]| must be two times in order)"
    ):
        parse_recipe(values)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval must be two times in order"),
        ({"steps": 0}, "steps must be a whole number, at least 1; got 0"),
        ({"guidance_channels": 0}, "guidance_channels must be a whole number, at least 1; got 0"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplerSettings(**setting)


def without_numbers(keys: Iterable[str]) -> set[str]:
    """Keys of any number of blocks."""
    return {re.sub(r"^blocks\.\d+", "blocks", key) for key in keys}


@torch.no_grad()
@pytest.mark.parametrize("wrapped", ["ema", "model"])
def test_a_public_checkpoint_draws_what_the_reference_draws(
    tmp_path: Path, golden: Callable[[str], State], monkeypatch: pytest.MonkeyPatch, wrapped: str
) -> None:
    """`davae convert` of a checkpoint as LightningDiT's training writes it, then drawing."""
    tensors = golden("lightningdit_a_base")
    state = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    assert without_numbers(state) == without_numbers(json.loads((KEYS / "lightningdit_xl.json").read_text()))
    prefix = "module." if wrapped == "model" else ""  # the average is saved without, the weights inside DDP
    torch.save({wrapped: {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "0800000.pt")
    torch.save({"mean": torch.full((1, 8, 1, 1), 0.5), "std": torch.full((1, 8, 1, 1), 2.0)}, tmp_path / "stats.pt")
    AutoencoderKL(
        latent_channels=8,
        block_out_channels=(4,),
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=None,
    ).save_pretrained(tmp_path / "vae")
    command = ["convert", tmp_path / "0800000.pt", "--vae", tmp_path / "vae", "--statistics", tmp_path / "stats.pt"]
    assert main([str(word) for word in [*command, "--no-qk-norm", "--to", tmp_path / "pair"]]) == 0

    labels = tensors["in.cfg_y"].chunk(2)[0].tolist()  # of 10 classes, so image i is of class i
    settings = SamplerSettings(
        steps=9,  # the reference's 10 points, shifted by 0.3 by the pair's own scheduler
        guidance_scale=tensors["in.cfg_scale"].item(),
        guidance_interval=(tensors["in.cfg_interval_start"].item(), 1.0),
    )
    classes = ClassSampler(Pair(tmp_path / "pair").load(), settings)
    monkeypatch.setattr(class_sampler, "draw_noise", lambda _seeds, _shape: tensors["in.sample_z"])
    latents = classes.latents(labels)
    assert_close(latents, tensors["out.sample_cfg"])
    with_statistics = classes.pipeline.vae.decode(latents * 2 + 0.5).sample
    assert torch.equal(classes.images(latents), unit_to_uint8(with_statistics / 2 + 0.5))
