"""LoRA beside trained heads: frozen layers in bf16, the saved adapter, and the way back into a stock pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import davae
from backbones.families import FAMILIES, PIPELINES, Family
from conftest import assert_close
from davae.backbones import lora
from davae.backbones.lora import (
    HEADS_FILE,
    LORA_FILE,
    LoraSettings,
    load_adapter,
    load_finetuned,
    merge_lora,
    prepare_lora,
    save_adapter,
)
from davae.backbones.registry import backbone_of

NAMES = ("lightningdit", "sd3", "flux", "flux2", "pixart", "sana", "dit", "hunyuan")
LOADERS = ("sd3", "flux", "flux2", "sana")
DETAIL = 6


def widened(name: str, detail_channels: int = DETAIL) -> Any:
    """The same weights every time."""
    torch.manual_seed(0)
    return davae.widen(FAMILIES[name].transformer(), detail_channels)


def trained(name: str, transformer: Any = None, **settings: Any) -> Any:
    """A transformer whose LoRA and heads have moved; alpha is not the rank, so that it matters."""
    settings = {"rank": 2, "alpha": 6.0} | settings
    model = prepare_lora(widened(name) if transformer is None else transformer, LoraSettings(**settings), seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
    return model.eval()


def predict(name: str, model: Any) -> Tensor:
    channels = backbone_of(model).latent_channels(model.config)
    latent = torch.randn(2, channels, *FAMILIES[name].sizes, generator=torch.Generator().manual_seed(2))
    return FAMILIES[name].predict(model, latent)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_layers_in_bf16_train_under_autocast(name: str) -> None:
    before = {key: value.dtype for key, value in widened(name).named_buffers()}
    got, want = (trained(name, frozen_precision=precision) for precision in ("bf16", "fp32"))
    adapted = {key for key, module in got.named_modules() if hasattr(module, "lora_A")}
    for path, module in got.named_modules():
        for weight in module.parameters(recurse=False):
            rounded = isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) and not weight.requires_grad
            assert weight.dtype == (torch.bfloat16 if rounded else torch.float32), path
    assert adapted
    for path in backbone_of(got).heads:
        assert got.get_submodule(path).weight.dtype == torch.float32
    assert {key: value.dtype for key, value in got.named_buffers()} == before
    outputs = []
    for model in (got, want):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(predict(name, model).float())
        outputs[-1].square().mean().backward()
    assert_close(*outputs, 0.02)  # autocast rounds the same weights anyway
    for key, weight in got.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, key
            assert weight.grad.isfinite().all(), key


def test_what_a_class_keeps_in_fp32_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = widened("sd3")
    monkeypatch.setattr(type(model), "_keep_in_fp32_modules", ["time_text_embed"])
    prepare_lora(model, LoraSettings(rank=2, frozen_precision="bf16"), seed=0)
    assert {weight.dtype for weight in model.time_text_embed.parameters()} == {torch.float32}
    assert model.context_embedder.weight.dtype == torch.bfloat16


def test_merging_into_bf16_layers_rounds_the_sum() -> None:
    rounded = merge_lora(trained("sd3", frozen_precision="bf16"))
    assert rounded.transformer_blocks[0].attn.to_q.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert_close(predict("sd3", rounded.float()), predict("sd3", merge_lora(trained("sd3"))), 0.02)


def test_targets_are_layers_and_never_the_head() -> None:
    model = prepare_lora(widened("flux"), LoraSettings(rank=2, targets=("to_q", "proj_out")), seed=0)
    adapted = {key for key, module in model.named_modules() if hasattr(module, "lora_A")}
    assert "single_transformer_blocks.0.proj_out" in adapted
    assert "proj_out" not in adapted
    with pytest.raises(ValueError, match="target 'to_x' is the end of no layer's path in the FluxTransformer2DModel"):
        prepare_lora(widened("flux"), LoraSettings(rank=2, targets=("to_q", "to_x")), seed=0)
    with pytest.raises(ValueError, match="rank must be at least 1; got 0"):
        LoraSettings(rank=0)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_saved_adapter_gives_the_trained_model(name: str, merge: bool, tmp_path: Path) -> None:
    model = trained(name)
    want, plain = predict(name, model), predict(name, widened(name))
    assert (want - plain).abs().max() > 0.01 * plain.abs().max()
    save_adapter(model, tmp_path / "adapter", DETAIL)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(("adapter", LORA_FILE, HEADS_FILE))
    loaded = load_adapter(widened(name), tmp_path / "adapter", merge=merge)
    assert any(hasattr(module, "lora_A") for module in loaded.modules()) != merge
    assert_close(predict(name, loaded), want, 1e-5)
    if merge:  # an ordinary model again
        loaded.save_pretrained(tmp_path / "whole")
        assert_close(predict(name, type(loaded).from_pretrained(tmp_path / "whole")), want, 1e-5)


def test_the_files_are_in_diffusers_layout(tmp_path: Path) -> None:
    import diffusers

    model = trained("sd3")
    save_adapter(model, tmp_path, DETAIL)
    weights, metadata = diffusers.StableDiffusion3Pipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    assert weights.keys() == {f"transformer.{key}" for key in get_peft_model_state_dict(model)}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (2, 6.0)
    heads = load_file(tmp_path / HEADS_FILE)
    assert heads.keys() == {"pos_embed.proj.weight", "pos_embed.proj.bias", "proj_out.weight", "proj_out.bias"}
    assert torch.equal(heads["proj_out.weight"], model.proj_out.weight)
    with safe_open(tmp_path / HEADS_FILE, "pt") as file:
        found = file.metadata()
    assert found == {
        "format": "pt",
        "format_version": "1",
        "class_name": "SD3Transformer2DModel",
        "base_channels": "4",
        "detail_channels": "6",
        "davae_version": davae.__version__,
    }


def test_an_interrupted_save_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter(trained("sd3"), tmp_path / "adapter", DETAIL)
    (tmp_path / "adapter" / "note.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}

    def full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        if path.name == HEADS_FILE:
            raise OSError("No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(lora, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(trained("sd3", rank=3), tmp_path / "adapter", DETAIL)
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    monkeypatch.undo()
    save_adapter(trained("sd3", rank=3), tmp_path / "adapter", DETAIL)
    assert {path.name for path in tmp_path.rglob("*")} == {"adapter", *before}


@torch.no_grad()
def test_training_goes_on_from_a_saved_adapter(tmp_path: Path) -> None:
    first = trained("sd3")
    save_adapter(first, tmp_path, DETAIL)
    settings = LoraSettings(rank=2, alpha=6.0)
    second = load_adapter(prepare_lora(widened("sd3"), settings, seed=5), tmp_path, merge=False)
    for (name, got), (_, want) in zip(second.named_parameters(), first.named_parameters(), strict=True):
        assert torch.equal(got, want), name
        assert got.requires_grad == want.requires_grad, name
    with pytest.raises(ValueError, match="has: got r 2, allowed 4. Use the settings"):
        load_adapter(prepare_lora(widened("sd3"), LoraSettings(rank=4, alpha=6.0), seed=5), tmp_path, merge=False)
    fewer = LoraSettings(rank=2, alpha=6.0, targets=("to_q",))
    with pytest.raises(ValueError, match="target_modules 16 layers, allowed 3 layers"):
        load_adapter(prepare_lora(widened("sd3"), fewer, seed=5), tmp_path, merge=False)


def upgraded(family: Family) -> Any:
    """The same pipeline every time."""
    torch.manual_seed(0)
    pipe = davae.upgrade(family.make(), detail_channels=DETAIL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(family: Family, pipe: Any) -> Tensor:
    return torch.from_numpy(family.draw(pipe))


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
@pytest.mark.parametrize("name", LOADERS)
def test_stock_pipelines_load_the_lora_and_draw_as_merged(name: str, tmp_path: Path) -> None:
    family = PIPELINES[name]
    pipes = [upgraded(family) for _ in range(2)]
    plain = images(family, pipes[0])
    save_adapter(trained(name, upgraded(family).transformer), tmp_path, DETAIL)
    attached, merged = load_finetuned(pipes[0], tmp_path), load_finetuned(pipes[1], tmp_path, merge=True)
    assert (attached, merged) == (pipes[0], pipes[1])
    want = images(family, merged)
    assert (want - plain).abs().max() > 0.01
    assert_close(images(family, attached), want, 1e-5)
    assert attached.get_list_adapters() == {"transformer": ["default_0"]}
    attached.unload_lora_weights()  # the heads stay
    assert torch.equal(
        attached.transformer.get_submodule(family.head).weight,
        load_file(tmp_path / HEADS_FILE)[f"{family.head}.weight"],
    )
    assert (images(family, attached) - want).abs().max() > 1e-3
    attached.load_lora_weights(tmp_path)  # as a user would, without davae
    assert_close(images(family, attached), want, 1e-5)


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_pipelines_without_lora_get_it_merged(tmp_path: Path) -> None:
    family = PIPELINES["pixart"]
    model = trained("pixart", upgraded(family).transformer)
    save_adapter(model, tmp_path, DETAIL)
    pipe = load_finetuned(upgraded(family), tmp_path)
    assert not hasattr(pipe, "load_lora_weights")
    with torch.no_grad():
        assert_close(predict("pixart", pipe.transformer), predict("pixart", model), 1e-5)


def test_a_run_brings_its_autoencoder(tmp_path: Path) -> None:
    family = PIPELINES["sd3"]
    pipe = upgraded(family)
    save_adapter(trained("sd3", upgraded(family).transformer), tmp_path / "run" / "transformer", DETAIL)
    autoencoder = upgraded(family).vae
    with torch.no_grad():
        for weight in autoencoder.decoder.parameters():
            weight.add_(1.0)
    autoencoder.save_pretrained(tmp_path / "run" / "tokenizer")
    load_finetuned(pipe, tmp_path / "run")
    for name, weight in autoencoder.state_dict().items():
        assert torch.equal(pipe.vae.state_dict()[name], weight), name
    narrow = davae.upgrade(family.make(), detail_channels=4)
    narrow.vae.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"does not fit the pipeline: got .*detail_channels=4\), compression"):
        load_finetuned(upgraded(family), tmp_path / "run", autoencoder=tmp_path / "narrow")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    import diffusers

    save_adapter(trained("sd3"), tmp_path / "sd3", DETAIL)
    save_adapter(trained("pixart"), tmp_path / "pixart", DETAIL)
    for detail, pattern in ((8, "takes 12. Upgrade the pretrained pipeline with detail_channels=6"), (DETAIL, "")):
        model = widened("sd3", detail)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        with pytest.raises(ValueError, match=pattern or "are of a PixArtTransformer2DModel; got a SD3Transformer2D"):
            load_adapter(model, tmp_path / ("sd3" if pattern else "pixart"))
        assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    wide = diffusers.SD3Transformer2DModel.from_config(
        dict(widened("sd3").config) | {"num_attention_heads": 4, "caption_projection_dim": 32}
    )
    with pytest.raises(ValueError, match=r"another size: got pos_embed.proj.*allowed .*\(32, 10, 2, 2\)"):
        load_adapter(wide, tmp_path / "sd3")
    shallow = diffusers.SD3Transformer2DModel.from_config(dict(widened("sd3").config) | {"num_layers": 1})
    with pytest.raises(ValueError, match="does not fit this SD3Transformer2DModel: 12 of 32 weights.*no such layer"):
        load_adapter(shallow, tmp_path / "sd3")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"There is no {HEADS_FILE} in"):
        load_adapter(widened("sd3"), tmp_path)
    with pytest.raises(ValueError, match="There is no LoRA to save on this SD3Transformer2DModel"):
        save_adapter(merge_lora(trained("sd3")), tmp_path / "none", DETAIL)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match=r"got a StableDiffusion3Pipeline with a AutoencoderKL. Call davae.upgrade"):
        load_finetuned(PIPELINES["sd3"].make(), tmp_path)
    save_adapter(trained("sd3"), tmp_path / "sd3", DETAIL)
    save_file(load_file(tmp_path / "sd3" / LORA_FILE), tmp_path / "sd3" / LORA_FILE)
    with pytest.raises(ValueError, match="does not say its rank and alpha"):
        load_adapter(widened("sd3"), tmp_path / "sd3")
