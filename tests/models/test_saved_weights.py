"""Folders of saved models as people have them: variants, shards, pointers, broken downloads, damaged configs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

import davae
from davae.models.loading import autoencoder_outline, load_autoencoder
from davae.models.saved_weights import choose_weights, read_config
from tiny_pair import tiny_autoencoder

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_autoencoder().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def same(folder: Path, model: Any) -> bool:
    state = load_autoencoder(folder).state_dict()
    return all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def shard(folder: Path, model: Any, name: str, index: str | None) -> list[str]:
    """The weights in shards of 16 kB in place of what was there."""
    (folder / WEIGHTS).unlink()
    state = model.state_dict()
    split = split_torch_state_dict_into_shards(state, filename_pattern=name, max_shard_size=16000)
    for file, names in split.filename_to_tensors.items():
        save_file({key: state[key] for key in names}, folder / file, metadata={"format": "pt"})
    if index is not None:
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": split.tensor_to_filename}))
    return sorted(split.filename_to_tensors)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_the_only_variant_is_taken(folder: Path, variant: str) -> None:
    model = load_autoencoder(folder)
    (folder / WEIGHTS).rename(folder / f"{STEM}.{variant}.safetensors")
    before = sorted(file.name for file in folder.iterdir())
    assert same(folder, model)
    assert sorted(file.name for file in folder.iterdir()) == before


def test_plain_weights_come_before_variants(folder: Path) -> None:
    model = load_autoencoder(folder)
    (folder / f"{STEM}.fp16.safetensors").write_bytes(b"")
    assert same(folder, model)
    (folder / WEIGHTS).rename(folder / f"{STEM}.bf16.safetensors")
    with pytest.raises(ValueError, match=rf"the variants bf16 .*fp16 .*and no plain ones. Keep one, or .*{WEIGHTS}"):
        load_autoencoder(folder)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        (f"{STEM}{{suffix}}.safetensors", f"{WEIGHTS}.index.json"),
        (f"{STEM}{{suffix}}.safetensors", None),
        (f"{STEM}.fp16{{suffix}}.safetensors", f"{WEIGHTS}.index.fp16.json"),
        (f"{STEM}{{suffix}}.fp16.safetensors", f"{WEIGHTS}.index.fp16.json"),
        (f"{STEM}.fp16{{suffix}}.safetensors", None),
    ],
)
def test_shards_load_with_an_index_and_without(folder: Path, name: str, index: str | None) -> None:
    model = load_autoencoder(folder)
    shards = shard(folder, model, name, index)
    assert len(shards) > 1
    assert same(folder, model)
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete: 1 shards .*example {shards[1]}. Download or save"):
        load_autoencoder(folder)


def test_an_index_that_leads_elsewhere_is_refused(folder: Path) -> None:
    shard(folder, load_autoencoder(folder), f"{STEM}{{suffix}}.safetensors", None)
    index = folder / f"{WEIGHTS}.index.json"
    for content, message in (
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "has no weight_map of file names"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, r"names other files than shards .*\.\./\.\./secret"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_autoencoder(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match=rf"Cannot read .*{index.name}: Expecting property name"):
        load_autoencoder(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "it is a pointer of git-lfs.* Run git lfs pull",
        ),
        (b"<!DOCTYPE html><html></html>", "it is a web page, not the file. Download"),
        (b"", "it is empty. Download"),
        (None, "it is no whole safetensors file .*Download or save it again"),
    ],
)
def test_what_lies_in_place_of_weights_is_named(folder: Path, content: bytes | None, message: str) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=f"Cannot read {path}: {message}"):
        load_autoencoder(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            f"{STEM}.bin",
            rf"no weights in safetensors .*got {STEM}.bin, which can run code and is never read. Save it",
        ),
        (f"{WEIGHTS}.incomplete", "incomplete: .*incomplete is a download that broke off. Download it again"),
        ("notes.txt", "no weights in safetensors .*got config.json, notes.txt"),
    ],
)
def test_a_folder_without_weights_says_what_it_has(folder: Path, name: str, message: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    with pytest.raises(FileNotFoundError, match=message):
        load_autoencoder(folder)


def test_models_of_davae_are_never_unpickled(tmp_path: Path) -> None:
    """Whoever loads them: without the library's own loaders too."""
    davae.AutoencoderDA.from_base(tiny_autoencoder()).save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / f"{STEM}.bin").is_file()
    with pytest.raises(OSError, match="safetensors"):
        davae.AutoencoderDA.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "<html>", "\ufeff{}", '{"a": ' * 100_000, "null"])
def test_a_damaged_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    for read in (load_autoencoder, autoencoder_outline):
        with pytest.raises(ValueError, match=f"Cannot read {folder / 'config.json'}: "):
            read(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent_channels": "four"},
        {"latent_channels": -1},
        {"encoder_block_out_channels": 7},
        {"encoder_block_out_channels": []},
        {"encoder_block_types": "NoBlock"},
    ],
)
def test_entries_that_mean_nothing_are_an_error_with_the_folder(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(read_config(path) | changes))
    for read in (load_autoencoder, autoencoder_outline):
        with pytest.raises(ValueError, match=f"Cannot open the AutoencoderDC in {folder}: .*Correct its config"):
            read(folder)


def test_quantised_weights_are_refused_by_their_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(read_config(path) | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ValueError, match="AutoencoderDC in .*: it was saved quantised"):
        load_autoencoder(folder)


def test_variants_are_told_apart_by_names() -> None:
    [plain] = choose_weights(["model.fp16.safetensors", "model.safetensors", "config.json", "model.bin"])
    assert (plain.files, plain.is_standard) == (("model.safetensors",), True)
    [shards] = choose_weights([f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 4)])
    assert (shards.absent, shards.is_standard) == (("model-00003-of-00004.safetensors",), False)
    assert [weights.variant for weights in choose_weights(["model.bf16.safetensors", "model.fp16.safetensors"])] == [
        "bf16",
        "fp16",
    ]
    assert choose_weights(["optimizer.safetensors", "model.txt"]) == []


def test_weights_are_read_once_the_links_are_gone(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / f"{STEM}.fp16.safetensors")
    model = load_autoencoder(folder)
    stored = load_file(folder / f"{STEM}.fp16.safetensors")
    assert isinstance(model, AutoencoderDC)
    assert torch.equal(model.encoder.conv_out.weight, stored["encoder.conv_out.weight"])


@pytest.mark.parametrize("class_name", ["evil.Evil", ["evil", "Evil"], "os"])
def test_a_config_names_no_code(
    folder: Path, class_name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in (tmp_path, folder):
        (place / "evil.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\nclass Evil: pass\n")
    path, content = folder / "config.json", read_config(folder / "config.json")
    upgraded = {"_class_name": "AutoencoderDA", "base_class": class_name, "base_config": content}
    for changed in (content | {"_class_name": class_name}, content | upgraded):
        path.write_text(json.dumps(changed | {"auto_map": {"AutoModel": "evil.Evil"}}))
        with pytest.raises(ValueError, match="Cannot (load|open|use)"):
            load_autoencoder(folder)
    assert not (tmp_path / "RAN").exists()
