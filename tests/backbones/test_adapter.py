"""LoRA beside trained heads: frozen layers in bf16, the saved adapter, and the way back into a widened model."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import davae
from backbones.trained import DETAIL, predict, trained, widened
from conftest import assert_close
from davae.backbones import adapter
from davae.backbones.adapter import HEADS_FILE, LORA_FILE, load_adapter, save_adapter
from davae.backbones.lora import merge_lora, prepare_lora
from davae.backbones.registry import backbone_of
from davae.backbones.settings import LoraSettings

NAMES = ("lightningdit", "sd3", "flux", "flux2", "pixart", "sana", "dit", "hunyuan")


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
    with pytest.raises(ValueError, match="rank must be a whole number, at least 1; got 0"):
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
        if HEADS_FILE in path.name:
            raise OSError("No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(adapter, "save_file", full)
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
    save_adapter(trained("sd3"), tmp_path / "sd3", DETAIL)
    save_file(load_file(tmp_path / "sd3" / LORA_FILE), tmp_path / "sd3" / LORA_FILE)
    with pytest.raises(ValueError, match="does not say its rank and alpha"):
        load_adapter(widened("sd3"), tmp_path / "sd3")
