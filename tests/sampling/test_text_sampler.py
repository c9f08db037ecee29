"""What prompts are encoded as, how often, and by whom: typed ones, and ones that were encoded before."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import davae
from conftest import assert_close
from davae.backbones.registry import BACKBONES
from davae.backbones.sd3 import SD3
from davae.sampling import stock_text
from davae.sampling.settings import SamplerSettings
from davae.sampling.stock_text import encode, truncated
from davae.sampling.text_sampler import EncodedPrompts, TextSampler, TypedPrompts
from tiny_text import MAX_LENGTH, tiny_text_pipeline

PROMPTS = ["a red cube", "a striped sphere"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return davae.upgrade(tiny_text_pipeline(), scale=2, init="random")


LONG = "a " + "red " * 20 + "cube"


def test_long_prompts_are_named(pipe: Any, recwarn: pytest.WarningsRecorder) -> None:
    assert truncated(pipe, [PROMPTS[0], LONG], MAX_LENGTH) == [LONG]
    prompts = TypedPrompts(pipe, [PROMPTS[0], LONG, LONG], MAX_LENGTH)
    sampler = TextSampler(pipe, SamplerSettings(steps=1), prompts, (32, 32))
    assert sampler.warning is not None
    assert sampler.warning.startswith("The text encoders do not read the end of 1 of the prompts")
    assert "'a red red red" in sampler.warning
    assert TypedPrompts(pipe, PROMPTS, MAX_LENGTH).warning is None
    recwarn.clear()
    sampler.latents([0, 1, 2])
    assert not [str(warning.message) for warning in recwarn if "token" in str(warning.message)]  # it was said before


def test_what_t5_reads_to_the_end_is_not_too_long(pipe: Any) -> None:
    assert truncated(pipe, [LONG], 64) == []
    assert TypedPrompts(pipe, [LONG], 64).warning is None


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Prompts of every call of the text encoders."""
    seen: list[tuple[str, ...]] = []

    def encode_text(pipe: Any, prompts: list[str], max_length: int) -> dict[str, Tensor]:
        assert SD3.encode_text is not None
        seen.append(tuple(prompts))
        return SD3.encode_text(pipe, prompts, max_length)

    monkeypatch.setitem(BACKBONES, SD3.class_name, replace(SD3, encode_text=encode_text))
    return seen


def test_the_negative_prompt_is_encoded_once_and_a_batch_once_for_two_samplers(
    pipe: Any, encodings: list[tuple[str, ...]]
) -> None:
    settings, base = SamplerSettings(steps=1, guidance_scale=4.0), tiny_text_pipeline()
    prompts = TypedPrompts(pipe, [*PROMPTS, "a blue box"], MAX_LENGTH, "a box")
    # The second one has no text encoders of its own.
    base.register_modules(**{name: None for name in base.components if name.startswith(("text_", "tokenizer"))})
    samplers = TextSampler(pipe, settings, prompts, (32, 32)), TextSampler(base, settings, prompts, (16, 16))
    for batch in ([0, 1], [2, 3], [4]):
        for sampler in samplers:
            assert sampler.latents(batch).shape[0] == len(batch)
    batches = [tuple(PROMPTS), ("a blue box", PROMPTS[0]), (PROMPTS[1],)]
    assert encodings == [batches[0], ("a box",), *batches[1:]]
    samplers[0].latents(range(2))
    assert encodings[4:] == [batches[0]]  # no more than the last batch is kept


def test_without_guidance_no_negative_prompt_is_encoded(pipe: Any, encodings: list[tuple[str, ...]]) -> None:
    prompts = TypedPrompts(pipe, PROMPTS, MAX_LENGTH)
    TextSampler(pipe, SamplerSettings(steps=1, guidance_scale=1.0), prompts, (32, 32)).latents([0, 1])
    assert encodings == [tuple(PROMPTS)]


def test_prompts_repeat_in_turn(pipe: Any) -> None:
    prompts = TypedPrompts(pipe, PROMPTS, MAX_LENGTH)
    assert prompts.captions([0, 1, 2, 5]) == [*PROMPTS, *PROMPTS]
    rows = prompts.rows([0, 2])
    assert all(torch.equal(tensor[0], tensor[1]) for tensor in rows.values())
    assert all(len(tensor) == 1 for tensor in prompts.negatives().values())


def test_the_length_is_the_pipelines_own_unless_it_is_given(pipe: Any) -> None:
    assert stock_text.default_length(pipe) == 256
    assert (TypedPrompts(pipe, PROMPTS).max_length, TypedPrompts(pipe, PROMPTS, 7).max_length) == (256, 7)
    assert TypedPrompts(pipe, PROMPTS, 7).rows([0])["prompt_embeds"].shape[1] == MAX_LENGTH + 7


def test_encoded_prompts_draw_what_typed_ones_draw(pipe: Any, encodings: list[tuple[str, ...]]) -> None:
    conditions, negatives = encode(pipe, PROMPTS, MAX_LENGTH), encode(pipe, ["a box"], MAX_LENGTH)
    encodings.clear()
    prompts = EncodedPrompts(PROMPTS, conditions, negatives)
    settings = SamplerSettings(steps=2, guidance_scale=4.0, seed=3)
    sampler = TextSampler(pipe, settings, prompts, (32, 32))
    drawn = sampler.latents([1, 0])
    assert encodings == []
    assert (sampler.captions([1, 0]), sampler.warning) == ([PROMPTS[1], PROMPTS[0]], None)
    assert torch.equal(prompts.rows([1])["prompt_embeds"], conditions["prompt_embeds"][1:])
    typed = TextSampler(pipe, settings, TypedPrompts(pipe, PROMPTS, MAX_LENGTH, "a box"), (32, 32))
    assert_close(drawn, typed.latents([1, 0]), 1e-5)
    with pytest.raises(IndexError):
        sampler.latents([2])  # there are no more of them


@pytest.mark.parametrize("prompts", [[], "a cube", [""], [" "], ["a cube", None], [3]])
def test_what_is_no_prompt_is_refused(pipe: Any, prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"[Pp]rompt"):
        TypedPrompts(pipe, prompts, MAX_LENGTH)
