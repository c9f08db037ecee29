"""Velocity and text of the families that speak flow matching, step for step as the stock pipeline has them."""

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPTextConfig, CLIPTextModel, Gemma2Config, Gemma2Model, GemmaTokenizer, T5Config
from transformers import T5EncoderModel as T5

from backbones.families import FAMILIES
from backbones.transformers import POOLED, TEXT, WORDS
from conftest import assert_close
from davae.backbones.registry import BACKBONES, backbone_of
from davae.core.flow import from_sigma
from tiny_text import MAX_LENGTH, clip_tokenizer, t5_tokenizer, tiny_text_pipeline

FLOWING = ("sd3", "flux", "sana")
STEPS, GRID = 3, (8, 16)
PROMPTS = ["a matte red cube", "", "a metal blue sphere"]


def conditions_for(name: str) -> dict[str, Tensor]:
    """Two different texts; SANA's have padding."""
    tensors = {"prompt_embeds": torch.randn(2, WORDS, TEXT)}
    if name == "sana":
        return tensors | {"prompt_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])}
    return tensors | {"pooled_prompt_embeds": torch.randn(2, POOLED)}


def stock(name: str) -> Any:
    """The stock pipeline; SANA's solver at first order, which is an Euler step."""
    pipe = FAMILIES[name].make()
    if name == "sana":
        pipe.transformer.register_to_config(timestep_scale=0.5)
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
    return pipe


def trajectory(name: str, pipe: Any, noise: Tensor, conditions: Mapping[str, Tensor]) -> list[Tensor]:
    """Latents [B, K, h, w] behind every step of the stock pipeline without guidance."""
    seen: list[Tensor] = []

    def look(_pipe: Any, _step: int, _time: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    height, width = (pipe.vae_scale_factor * side for side in GRID)
    packed = pipe._pack_latents(noise, *noise.shape) if name == "flux" else noise
    pipe(
        **conditions,
        **({"use_resolution_binning": False} if name == "sana" else {}),
        height=height,
        width=width,
        latents=packed,
        guidance_scale=1.0,
        num_inference_steps=STEPS,
        output_type="latent",
        callback_on_step_end=look,
    )
    return [
        pipe._unpack_latents(one, height, width, pipe.vae_scale_factor) if name == "flux" else one for one in seen
    ]


@pytest.mark.parametrize("name", FLOWING)
@torch.no_grad()
def test_euler_steps_with_our_velocity_are_those_of_the_stock_pipeline(name: str) -> None:
    pipe, conditions = stock(name), conditions_for(name)
    family = backbone_of(pipe.transformer)
    latent = torch.randn(2, family.latent_channels(pipe.transformer.config), *GRID)
    wanted = trajectory(name, pipe, latent, conditions)
    sigmas, timesteps = pipe.scheduler.sigmas, pipe.scheduler.timesteps
    if name != "sana":  # its solver rounds timesteps down
        torch.testing.assert_close(timesteps, 1000 * sigmas[:-1])
    for step in range(STEPS):
        time = from_sigma(timesteps[step] / 1000).expand(2)
        velocity = family.velocity(pipe.transformer, latent, time, conditions)
        latent = latent + (sigmas[step] - sigmas[step + 1]) * velocity
        assert_close(latent, wanted[step], relative=1e-5)
    assert len(wanted) == STEPS


@pytest.mark.parametrize("name", FLOWING)
@torch.no_grad()
def test_samples_of_a_batch_have_times_and_texts_of_their_own(name: str) -> None:
    transformer, conditions = FAMILIES[name].transformer(), conditions_for(name)
    family = backbone_of(transformer)
    latent = torch.randn(2, family.latent_channels(transformer.config), *GRID)
    time = torch.tensor([0.2, 0.9])
    together = family.velocity(transformer, latent, time, conditions)
    assert together.shape == latent.shape
    for place in range(2):
        own = {key: rows[place : place + 1] for key, rows in conditions.items()}
        alone = family.velocity(transformer, latent[place : place + 1], time[place : place + 1], own)
        assert_close(together[place : place + 1], alone, relative=1e-5)
    other = family.velocity(transformer, latent, time.flip(0), conditions)
    assert not torch.allclose(other, together)


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("name", FLOWING)
def test_velocity_through_a_ddp_wrap_and_of_stored_16_bit_text(name: str) -> None:
    transformer, conditions = FAMILIES[name].transformer(), conditions_for(name)
    family = backbone_of(transformer)
    stored = {key: rows.bfloat16() if rows.is_floating_point() else rows for key, rows in conditions.items()}
    latent, time = torch.randn(2, family.latent_channels(transformer.config), *GRID), torch.rand(2)
    predicted = family.velocity(DistributedDataParallel(transformer), latent, time, stored)
    assert_close(predicted, family.velocity(transformer, latent, time, conditions), relative=0.05)
    predicted.square().mean().backward()
    embedder = transformer.get_submodule(family.embedders[0])
    assert embedder.weight.grad.abs().sum() > 0


def test_models_that_predict_noise_have_no_velocity() -> None:
    for family in BACKBONES.values():
        if family.convention in ("noise", "v"):
            assert family.velocity is None


def flux_with_text() -> Any:
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    clip_config = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=POOLED,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        eos_token_id=clip.eos_token_id,
    )
    t5_config = T5Config(vocab_size=len(t5), d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe = FAMILIES["flux"].make()
    return diffusers.FluxPipeline(
        pipe.scheduler, pipe.vae, CLIPTextModel(clip_config).eval(), clip, T5(t5_config).eval(), t5, pipe.transformer
    )


def sana_with_text() -> Any:
    letters = [chr(code) for code in range(32, 127)]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581"]
    tokenizer = GemmaTokenizer({token: place for place, token in enumerate([*special, *letters])}, [])
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    pipe = FAMILIES["sana"].make()
    pipe.register_modules(tokenizer=tokenizer, text_encoder=Gemma2Model(config).eval())
    return pipe


WITH_TEXT = {"sd3": tiny_text_pipeline, "flux": flux_with_text, "sana": sana_with_text}


@pytest.mark.parametrize("name", FLOWING)
@torch.no_grad()
def test_encoded_text_draws_what_the_prompt_draws(name: str) -> None:
    pipe = WITH_TEXT[name]()
    pipe.set_progress_bar_config(disable=True)
    family = backbone_of(pipe.transformer)
    token = family.token_side(pipe.transformer.config)
    side = max(4 * token * pipe.vae_scale_factor, 32)
    settings = {
        **{"height": side, "width": side, "num_inference_steps": 2, "output_type": "latent"},
        **({} if name == "flux" else {"guidance_scale": 3.0}),
        **family.call_with,
    }
    length = MAX_LENGTH
    rows = family.encode_text(pipe, PROMPTS, length)
    assert {name.partition(".")[0] for name in family.text_parts} <= set(pipe.components)
    for place, prompt in enumerate(PROMPTS):
        if name == "sana" and not prompt:
            continue  # its call puts instructions before the empty prompt too; an empty negative one has none
        own, null = ({key: row[at : at + 1] for key, row in rows.items()} for at in (place, 1))
        negative = {f"negative_{key}": row for key, row in null.items()}
        arguments = {**own, **negative, **family.call_with_embeddings}
        got = pipe(**arguments, generator=torch.Generator().manual_seed(1), **settings).images
        expected = pipe(
            prompt, generator=torch.Generator().manual_seed(1), max_sequence_length=length, **settings
        ).images
        assert_close(got, expected, relative=1e-5)


@pytest.mark.parametrize("name", FLOWING)
@torch.no_grad()
def test_text_encoders_whose_weights_wait_elsewhere_encode_the_same(name: str) -> None:
    """What sequential offload does, with a CPU for the accelerator."""
    pipe = WITH_TEXT[name]()
    family = backbone_of(pipe.transformer)
    wanted = family.encode_text(pipe, PROMPTS, MAX_LENGTH)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"))
    assert pipe.text_encoder.device.type == "meta"
    for key, rows in family.encode_text(pipe, PROMPTS, MAX_LENGTH).items():
        assert torch.equal(rows, wanted[key])


@pytest.mark.parametrize("name", FLOWING)
@torch.no_grad()
def test_tokens_are_counted_as_the_pipeline_cuts_them(name: str) -> None:
    """The last word that is counted as kept matters to the embeddings; the words behind it do not."""
    pipe, length = WITH_TEXT[name](), MAX_LENGTH + 3
    family = backbone_of(pipe.transformer)
    texts = [" ".join(["red"] * count) for count in range(1, 40)]
    limit, lengths = list(family.count_tokens(pipe, texts, length).values())[-1]
    assert lengths == sorted(set(lengths))
    kept = sum(tokens <= limit for tokens in lengths)

    def encoded(words: list[str]) -> Tensor:
        return family.encode_text(pipe, [" ".join(words)], length)["prompt_embeds"]

    whole = ["red"] * kept
    assert not torch.equal(encoded([*whole[:-1], "blue"]), encoded(whole))
    assert torch.equal(encoded([*whole, "red", "blue", "blue"]), encoded([*whole, "red", "red", "red"]))
