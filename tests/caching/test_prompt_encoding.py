"""Captions through the text encoders: bit for bit what the stock pipeline makes of them, and nothing else loaded."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from backbones.families import PIPELINES
from davae.backbones.pair import Pair
from davae.backbones.registry import BACKBONES
from davae.caching.prompt_encoding import encode_prompts, load_text_parts, text_encoders_hash
from davae.caching.settings import PromptsConfig
from davae.core.observer import Observer, Silent
from davae.data.cache_files import WHOLE, Part
from davae.data.errors import DataError
from davae.data.prompt_cache import NULL, PromptCache
from tiny_text import MAX_LENGTH, build_tiny_text_pair

CAPTIONS = {
    "one": ["a matte red cube"],
    "two": ["a metal blue sphere"],
    "same": ["a matte red cube"],
    "none": [],
    "blank": [" \n"],
}
LONG = "a matte red cube a matte red cube a matte red cube a matte red cube"


class Listener(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.bars: list[str] = []
        self.shown: list[int] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        self.bars.append(f"{stage} {total}")
        self.shown = []

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        self.shown.append(done)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_text_pair(tmp_path_factory.mktemp("text") / "pair")


@pytest.fixture(scope="module")
def stock(pair: Path) -> Any:
    pipe = StableDiffusion3Pipeline.from_pretrained(pair, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


Encode = Callable[..., PromptCache]


@pytest.fixture(scope="module")
def text_parts(pair: Path) -> Any:
    return load_text_parts(Pair(pair), torch.float32)


@pytest.fixture
def encoded(text_parts: Any, tmp_path: Path) -> Encode:
    """Captions -> their cache."""

    def encode(
        captions: Mapping[str, Any] = CAPTIONS,
        pipe: Any = text_parts,
        observer: Observer | None = None,
        part: Part = WHOLE,
        **settings: Any,
    ) -> PromptCache:
        config = PromptsConfig(
            **({"max_length": MAX_LENGTH, "dtype": "float32", "batch_size": 1, "shard_size": 2} | settings)
        )
        device, observer = torch.device("cpu"), observer or Silent()
        encode_prompts(pipe, captions, tmp_path / "cache", config, device, observer, encoders="abc", part=part)
        return PromptCache(tmp_path / "cache")

    return encode


def draw(pipe: Any, **arguments: Any) -> Tensor:
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    return pipe(generator=torch.Generator().manual_seed(1), **settings, **arguments).images


def as_negative(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"negative_{name}": tensor for name, tensor in tensors.items()}


def test_cached_prompt_draws_the_very_image_of_the_prompt(encoded: Encode, stock: Any) -> None:
    cache = encoded()
    for sample, captions in CAPTIONS.items():
        arguments = cache.embeddings([sample]) | as_negative(cache.embeddings([NULL]))
        expected = draw(stock, prompt="".join(captions).strip(), max_sequence_length=MAX_LENGTH)
        assert torch.equal(draw(stock, **arguments), expected)
    two = draw(stock, prompt=CAPTIONS["two"][0], max_sequence_length=MAX_LENGTH)
    assert not torch.equal(draw(stock, prompt=CAPTIONS["one"][0], max_sequence_length=MAX_LENGTH), two)


def test_batches_and_shards_do_not_change_what_is_stored(encoded: Encode, stock: Any) -> None:
    captions = {f"{number}": [f"a {number * 'red '}cube"] for number in range(7)}
    cache = encoded(captions, batch_size=3, shard_size=5)
    assert [count for _, count in cache.manifest.shards] == [5, 3]
    wanted = stock.encode_prompt(
        [caption for (caption,) in captions.values()], None, None, max_sequence_length=MAX_LENGTH
    )
    got = cache.embeddings(list(captions))
    torch.testing.assert_close(got["prompt_embeds"], wanted[0])
    torch.testing.assert_close(got["pooled_prompt_embeds"], wanted[2])


def test_equal_captions_share_a_row_and_empty_ones_are_the_empty_prompt(encoded: Encode) -> None:
    listener = Listener()
    cache = encoded(observer=listener)
    assert (len(cache), cache.num_prompts) == (5, 3)
    for name, rows in cache.embeddings(["one", "same", NULL, "none", "blank"]).items():
        assert torch.equal(rows[0], rows[1]), name
        assert torch.equal(rows[2], rows[3]), name
        assert torch.equal(rows[2], rows[4]), name
        assert not torch.equal(rows[0], rows[2]), name
    assert listener.messages[0] == "2 of 5 images have no caption: encoded as the empty prompt."
    assert listener.bars == ["prompt lengths 3", "prompts 3"]


def test_stored_in_the_dtype_asked_for(encoded: Encode) -> None:
    cache = encoded(dtype="bfloat16")
    assert cache.manifest.dtype == "bfloat16"
    assert cache.manifest.tensors["prompt_embeds"] == ("bfloat16", (2 * MAX_LENGTH, 24))
    assert {rows.dtype for rows in cache.embeddings(["one"]).values()} == {torch.bfloat16}


def test_overlong_prompts_are_named_once_and_the_libraries_keep_quiet(
    encoded: Encode, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    listener = Listener()
    overlong = {f"long {number}": [f"{LONG} {number * 'red '}"] for number in range(5)}
    cache = encoded(CAPTIONS | overlong, observer=listener, max_length=MAX_LENGTH + 2)
    (warning,) = [line for line in listener.messages if "too long" in line]
    assert warning.startswith("Warning: 5 of 8 different prompts")
    assert f"5 at {MAX_LENGTH} tokens (tokenizer), 5 at {MAX_LENGTH} tokens (tokenizer_2)" in warning
    assert f"5 at {MAX_LENGTH + 2} tokens (tokenizer_3)" in warning
    assert "long 0 ('a matte red cube" in warning
    assert "long 2" in warning
    assert "long 3" not in warning
    assert "truncated" not in caplog.text
    assert capfd.readouterr().err == ""
    assert cache.embeddings(["long 0"])["prompt_embeds"].shape == (1, 2 * MAX_LENGTH + 2, 24)


def test_a_prompt_that_just_fits_is_not_called_too_long(encoded: Encode) -> None:
    listener = Listener()
    encoded({"fits": [" ".join(["red"] * (MAX_LENGTH - 2))]}, observer=listener)
    assert not [line for line in listener.messages if "too long" in line]


@pytest.mark.parametrize("caption", [7, None, ["a cube"], b"a cube"])
def test_what_is_not_text_is_refused_by_name(encoded: Encode, caption: Any) -> None:
    with pytest.raises(DataError, match="sample 'bad' is not text: got .*Give a string"):
        encoded({"good": ["a cube"], "bad": [caption]})


def test_an_encoder_that_overflows_is_an_error_that_names_the_prompt(
    encoded: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5EncoderModel

    forward = T5EncoderModel.forward

    def overflow(self: Any, tokens: Tensor, **settings: Any) -> Any:
        states = forward(self, tokens, **settings)
        states.last_hidden_state[-1, 0, 0] = torch.inf
        return states

    monkeypatch.setattr(T5EncoderModel, "forward", overflow)
    with pytest.raises(FloatingPointError, match="prompt_embeds of '' is not finite.*prompts.dtype"):
        encoded()


def test_only_text_parts_are_loaded(pair: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(pair, tmp_path / "bare"))
    for part in ("transformer", "vae"):
        (bare / part / "diffusion_pytorch_model.safetensors").unlink()
    pipe = load_text_parts(Pair(bare), torch.bfloat16)
    assert pipe.vae is None
    assert {weight.device.type for weight in pipe.transformer.parameters()} == {"meta"}
    assert pipe.text_encoder_3.dtype == torch.bfloat16


def without_t5(pair: Path, folder: Path) -> Path:
    """The pair as people save it who do without T5."""
    shutil.copytree(pair, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps(index | dict.fromkeys(("text_encoder_3", "tokenizer_3"), [None, None]))
    )
    return folder


def test_a_pair_without_t5_has_the_pipelines_zeros_in_its_place(encoded: Encode, pair: Path, tmp_path: Path) -> None:
    folder = without_t5(pair, tmp_path / "small")
    cache = encoded(pipe=load_text_parts(Pair(folder), torch.float32))
    stock = StableDiffusion3Pipeline.from_pretrained(
        folder, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None
    )
    wanted = stock.encode_prompt(CAPTIONS["one"][0], None, None, max_sequence_length=MAX_LENGTH)[0]
    got = cache.embeddings(["one"])["prompt_embeds"]
    assert torch.equal(got, wanted)
    assert not got[:, MAX_LENGTH:].any()
    assert text_encoders_hash(Pair(folder)) != text_encoders_hash(Pair(pair))


def test_a_pair_without_clip_says_so(encoded: Encode, pair: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair, tmp_path / "odd"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": [None, None]}))
    with pytest.raises(ValueError, match="has no text_encoder_2; only text_encoder_3"):
        encoded(pipe=load_text_parts(Pair(folder), torch.float32))


def test_a_family_that_is_not_trained_from_text_is_refused(encoded: Encode) -> None:
    with pytest.raises(ValueError, match="prompts for a PixArtTransformer2DModel; allowed are (.*). Take") as error:
        encoded(pipe=PIPELINES["pixart"].make())
    for name, family in BACKBONES.items():
        assert (name in str(error.value).partition("allowed")[2]) == (family.encode_text is not None)


def test_hash_follows_encoders_and_tokenizers_alone(pair: Path, tmp_path: Path) -> None:
    before = text_encoders_hash(Pair(pair))
    other = Path(shutil.copytree(pair, tmp_path / "other"))
    assert text_encoders_hash(Pair(other)) == before
    (other / "transformer" / "config.json").write_text("{}")
    assert text_encoders_hash(Pair(other)) == before
    for changed in ("tokenizer_3/tokenizer.json", "text_encoder_2/model.safetensors", "text_encoder/config.json"):
        path = other / changed
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert text_encoders_hash(Pair(other)) != before, changed
        path.write_bytes(original)


def test_resume_encodes_the_missing_shard_alone(encoded: Encode, tmp_path: Path, monkeypatch: Any) -> None:
    captions = {f"{number}": [f"a {number * 'red '}cube"] for number in range(7)}
    whole = encoded(captions).embeddings(list(captions))
    missing = tmp_path / "cache" / "prompts-00000004.safetensors"
    kept = {path: path.stat().st_mtime_ns for path in missing.parent.glob("prompts-*") if path != missing}
    missing.unlink()
    with pytest.raises(DataError, match="prompts-00000004.*davae prompts RECIPE"):
        PromptCache(tmp_path / "cache")
    again = encoded(captions)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name, rows in again.embeddings(list(captions)).items():
        assert torch.equal(rows, whole[name])


def test_two_processes_encode_the_bytes_of_one_and_one_of_them_talks(encoded: Encode, tmp_path: Path) -> None:
    captions = {f"{number}": [f"a {number * 'red '}cube"] for number in range(7)} | {"none": []}
    alone, listeners, waits = Listener(), [Listener(), Listener()], list[int]()
    encoded(captions, observer=alone)
    one = (tmp_path / "cache").rename(tmp_path / "one")
    with pytest.raises(DataError, match="no complete prompt cache"):
        encoded(captions, observer=listeners[1], part=Part(1, 2, lambda: waits.append(1)))
    encoded(captions, observer=listeners[0], part=Part(0, 2, lambda: waits.append(0)))
    assert waits == [1, 1, 0, 0]
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == {
        path.name: path.read_bytes() for path in one.iterdir()
    }
    assert (listeners[0].bars, listeners[0].shown) == (["prompt lengths 8", "prompts 4"], [1, 2, 3, 4])
    assert (listeners[1].bars, listeners[1].shown) == (["prompts 4"], [1, 2, 3, 4])
    assert (listeners[0].messages, listeners[1].messages) == (alone.messages, [])


def test_new_captions_behind_the_old_ones_keep_whole_shards(encoded: Encode, tmp_path: Path) -> None:
    captions = {f"{number}": [f"a {number * 'red '}cube"] for number in range(7)}
    encoded(captions)
    first = tmp_path / "cache" / "prompts-00000000.safetensors"
    written = first.stat().st_mtime_ns
    cache = encoded(captions | {"new": ["a metal blue sphere"]})
    assert first.stat().st_mtime_ns == written
    assert len(cache) == 8
    encoded(captions, max_length=MAX_LENGTH - 1)
    assert first.stat().st_mtime_ns != written
