"""Step caches on an upgraded SD3 and on FLUX.1: what they skip, that nothing of one drawing enters the next."""

from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

import davae
from backbones.families import PIPELINES
from davae.sampling.settings import SamplerSettings
from davae.sampling.step_cache import (
    STEP_CACHES,
    disable_step_cache,
    enable_step_cache,
    is_step_cached,
    parse_step_cache,
)
from davae.sampling.text_sampler import TextSampler, TypedPrompts
from tiny_text import MAX_LENGTH, tiny_text_pipeline

STEPS = 12


@pytest.fixture
def pipe() -> Any:
    """Four blocks; the second is one that a cache can leave out."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = tiny_text_pipeline()
        model = SD3Transformer2DModel.from_config({**base.transformer.config, "num_layers": 4}).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        base.transformer = model
        upgraded = davae.upgrade(base, scale=2, init="random")
    upgraded.set_progress_bar_config(disable=True)
    return upgraded


def draw(
    pipe: Any, seed: int = 3, prompt: str = "a red cube", size: tuple[int, int] = (32, 32), **changes: Any
) -> Tensor:
    settings = SamplerSettings(**({"steps": STEPS, "guidance_scale": 4.0, "seed": seed} | changes))
    return TextSampler(pipe, settings, TypedPrompts(pipe, [prompt], MAX_LENGTH), size).latents([0])


def computed(pipe: Any, **changes: Any) -> int:
    """How often the second block's attention is computed for an image."""
    calls: list[None] = []
    layer = pipe.transformer.transformer_blocks[1].attn.to_q
    hook = layer.register_forward_hook(lambda *_: calls.append(None))
    draw(pipe, **changes)
    hook.remove()
    return len(calls)


@pytest.mark.parametrize(("kind", "value"), [("first-block", 0.0), ("taylorseer", 1), ("pyramid", 1)])
def test_a_cache_that_may_skip_nothing_changes_nothing(pipe: Any, kind: str, value: float) -> None:
    full = draw(pipe)
    enable_step_cache(pipe, kind, value)
    assert torch.equal(draw(pipe), full)
    assert computed(pipe) == STEPS


@pytest.mark.parametrize(
    ("kind", "value", "expected"), [("first-block", 100.0, 1), ("taylorseer", 3, 6), ("pyramid", 2, 9)]
)
def test_a_cache_skips_blocks(pipe: Any, kind: str, value: float, expected: int) -> None:
    full = draw(pipe)
    enable_step_cache(pipe, kind, value)
    assert computed(pipe) == expected
    drawn = draw(pipe)
    assert not torch.equal(drawn, full)
    assert (drawn - full).abs().max() < 0.5 * full.abs().max()


@pytest.mark.parametrize("kind", STEP_CACHES)
def test_a_drawing_does_not_see_the_one_before(pipe: Any, kind: str) -> None:
    value = 100.0 if kind == "first-block" else None
    enable_step_cache(pipe, kind, value)
    first = draw(pipe, seed=3)
    draw(pipe, seed=4, prompt="a blue sphere", guidance_scale=1.0)  # a batch of another size
    draw(pipe, seed=5, size=(48, 32))  # more tokens
    assert torch.equal(draw(pipe, seed=3), first)
    assert computed(pipe) < STEPS


def test_a_drawing_that_was_broken_off_leaves_nothing(pipe: Any) -> None:
    enable_step_cache(pipe, "first-block", 100.0)
    first = draw(pipe)

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a blue sphere", num_inference_steps=STEPS, max_sequence_length=MAX_LENGTH, callback_on_step_end=stop)
    assert torch.equal(draw(pipe), first)


def test_the_same_embeddings_twice_are_two_drawings(pipe: Any) -> None:
    embeds, _, pooled, _ = pipe.encode_prompt("a red cube", None, None, do_classifier_free_guidance=False)
    enable_step_cache(pipe, "first-block", 100.0)

    def once() -> Tensor:
        arguments = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "guidance_scale": 1.0}
        return pipe(**arguments, generator=torch.Generator().manual_seed(0), output_type="latent").images

    assert torch.equal(once(), once())


@pytest.mark.parametrize("kind", STEP_CACHES)
def test_a_guidance_interval_goes_with_a_cache(pipe: Any, kind: str) -> None:
    enable_step_cache(pipe, kind)
    assert torch.isfinite(draw(pipe, guidance_interval=(0.2, 0.5))).all()


@pytest.mark.parametrize("kind", STEP_CACHES)
def test_disabling_restores_the_pipeline(pipe: Any, kind: str) -> None:
    full = draw(pipe)
    enable_step_cache(pipe, kind)
    draw(pipe)
    assert is_step_cached(pipe)
    disable_step_cache(pipe)
    disable_step_cache(pipe)
    assert not is_step_cached(pipe)
    assert torch.equal(draw(pipe), full)


def test_one_cache_may_follow_another(pipe: Any) -> None:
    for kind in STEP_CACHES:
        enable_step_cache(pipe, kind, 100.0 if kind == "first-block" else None)
        assert computed(pipe) < STEPS
        disable_step_cache(pipe)
    assert computed(pipe) == STEPS


@pytest.mark.parametrize("kind", STEP_CACHES)
def test_flux_has_caches_of_its_own(kind: str) -> None:
    family = PIPELINES["flux"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = davae.upgrade(family.make(), scale=2)
        inputs = family.inputs()

    def image() -> Any:
        return family.draw(pipe, output_type="latent", num_inference_steps=6, **inputs)

    full = image()
    enable_step_cache(pipe, kind, 100.0 if kind == "first-block" else None)
    first = image()
    assert not torch.equal(first, full)
    assert torch.equal(image(), first)
    disable_step_cache(pipe)
    assert torch.equal(image(), full)


def test_wrong_use_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="no step cache 'fast'; allowed are first-block, taylorseer, pyramid"):
        enable_step_cache(pipe, "fast")
    with pytest.raises(ValueError, match="whole number of steps of at least 1; got 1.5"):
        enable_step_cache(pipe, "taylorseer", 1.5)
    with pytest.raises(ValueError, match="a threshold of at least 0"):
        enable_step_cache(pipe, "first-block", -1.0)
    enable_step_cache(pipe, "first-block")
    with pytest.raises(ValueError, match="one is on already"):
        enable_step_cache(pipe, "taylorseer")
    with pytest.raises(ValueError, match="first-block needs 3 blocks or more; got 2"):
        enable_step_cache(tiny_text_pipeline(), "first-block")
    with pytest.raises(ValueError, match="No step cache is known for a SanaTransformer2DModel"):
        enable_step_cache(PIPELINES["sana"].make(), "first-block")


def test_two_blocks_are_enough_for_the_others() -> None:
    pipe = tiny_text_pipeline()
    pipe.set_progress_bar_config(disable=True)
    for kind in ("taylorseer", "pyramid"):
        enable_step_cache(pipe, kind)
        assert torch.isfinite(draw(pipe, size=(16, 16))).all()
        disable_step_cache(pipe)


def test_the_command_line_names_kind_and_number() -> None:
    assert parse_step_cache("first-block") == ("first-block", None)
    assert parse_step_cache("first-block=0.08") == ("first-block", 0.08)
    assert parse_step_cache("taylorseer=4") == ("taylorseer", 4.0)
    for wrong in ("fast", "first-block=", "first-block=x", "taylorseer:3", "pyramid=1.2.3"):
        with pytest.raises(ValueError, match="step cache"):
            parse_step_cache(wrong)
