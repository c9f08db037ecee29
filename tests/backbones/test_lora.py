"""LoRA: what it adapts by default, and LoRA made for the pretrained transformer on the widened one."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import Tensor, nn

import davae
from backbones.families import FAMILIES, PIPELINES, Family
from conftest import assert_close
from davae.backbones.registry import BACKBONES, backbone_of

# Layers that LoRA adapts by default, block numbers left out.
ATTENTION = {f"blocks.{layer}" for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")}
SELF, CROSS = (
    {key.replace("attn", name).replace("blocks", "transformer_blocks") for key in ATTENTION}
    for name in ("attn1", "attn2")
)
JOINT = {key.replace("blocks", "transformer_blocks") for key in ATTENTION}
MODULES = {
    "lightningdit": {
        *("blocks.attn.qkv", "blocks.attn.proj", "blocks.mlp.w12", "blocks.mlp.w3", "blocks.adaLN_modulation.1"),
        "final_layer.adaLN_modulation.1",
    },
    "sd3": JOINT | CROSS | {"transformer_blocks.ff.net.2", "transformer_blocks.norm1.linear"},
    "flux": JOINT
    | {"transformer_blocks.ff.net.2", "transformer_blocks.norm1.linear"}
    | {f"single_{key}" for key in JOINT if "to_out" not in key}
    | {"single_transformer_blocks.proj_out", "single_transformer_blocks.norm.linear"},
    "flux2": JOINT
    | {"transformer_blocks.ff.linear_out", "double_stream_modulation_img.linear", "single_stream_modulation.linear"}
    | {"single_transformer_blocks.attn.to_qkv_mlp_proj", "single_transformer_blocks.attn.to_out"},
    "pixart": SELF | CROSS | {"transformer_blocks.ff.net.2", "adaln_single.linear"},
    "sana": SELF | CROSS | {"transformer_blocks.ff.conv_point", "time_embed.linear"},
    "dit": SELF | {"transformer_blocks.ff.net.2", "transformer_blocks.norm1.linear"},
    "hunyuan": {key.replace("transformer_blocks", "blocks") for key in SELF | CROSS}
    | {"blocks.ff.net.2", "blocks.norm1.linear"},
}
LOADERS = ("sd3", "flux", "flux2", "sana")


def nameless(path: str) -> str:
    """A path without the number of its block."""
    return re.sub(r"blocks\.\d+\.", "blocks.", path)


@pytest.mark.parametrize("name", MODULES)
def test_default_layers_are_the_references(name: str) -> None:
    transformer = FAMILIES[name].transformer()
    paths = backbone_of(transformer).lora_modules(transformer)
    assert {nameless(path) for path in paths} == MODULES[name]
    assert {key for key, _ in transformer.named_modules() if nameless(key) in MODULES[name]} == set(paths)
    assert not set(paths) & set(backbone_of(transformer).heads)


@pytest.mark.parametrize("name", MODULES)
def test_adapters_go_where_they_should_and_start_silent(name: str) -> None:
    family = FAMILIES[name]
    transformer = family.transformer()
    widened = davae.widen(transformer, detail_channels=6)
    backbone = backbone_of(widened)
    paths = backbone.lora_modules(widened)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=paths), widened.requires_grad_(False))
    adapted = {key for key, module in widened.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(paths)
    for path in backbone.heads:  # trained in full beside LoRA: these exact layers
        assert isinstance(widened.get_submodule(path), nn.Linear | nn.Conv2d)
    base = transformer.config.in_channels // family.packing
    latent = torch.randn(2, base + 6, *family.sizes)
    with torch.no_grad():
        got = family.predict(widened, latent).unflatten(1, (family.predictions, -1))
        want = family.predict(transformer, latent[:, :base]).unflatten(1, (family.predictions, -1))
    assert_close(got[:, :, :base], want, 1e-5)


def test_every_family_has_heads_and_targets() -> None:
    for backbone in BACKBONES.values():
        assert backbone.heads
        assert backbone.lora_targets


def lora_of(family: Family, folder: Path, targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")) -> None:
    """A LoRA file as people share them, trained on the pretrained transformer."""
    pipe = family.make()
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    layers = {key: 5 * value for key, value in get_peft_model_state_dict(pipe.transformer).items()}
    pipe.save_lora_weights(folder, transformer_lora_layers=layers)


@pytest.mark.parametrize("name", LOADERS)
def test_lora_of_the_pretrained_transformer_fits_the_widened(name: str, tmp_path: Path) -> None:
    family = PIPELINES[name]
    lora_of(family, tmp_path)
    pipe = family.make()
    after = davae.upgrade(pipe, detail_channels=6)
    latent = torch.randn(2, 10, *family.sizes)

    @torch.no_grad()
    def predict(model: Any, noisy: Tensor) -> Tensor:
        return family.predict(model, noisy)

    plain = predict(pipe.transformer, latent[:, :4])
    pipe.load_lora_weights(tmp_path)
    after.load_lora_weights(tmp_path)
    want = predict(pipe.transformer, latent[:, :4])
    assert (want - plain).abs().max() > 0.01 * plain.abs().max()
    got = predict(after.transformer, latent)
    assert_close(got[:, :4], want, 1e-5)
    assert not got[:, 4:].any()
    after.unload_lora_weights()
    assert_close(predict(after.transformer, latent)[:, :4], plain, 1e-5)


@pytest.mark.parametrize("name", LOADERS)
def test_lora_of_the_head_is_fused_before_widening(name: str, tmp_path: Path) -> None:
    family = PIPELINES[name]
    lora_of(family, tmp_path, ("to_q", family.head))
    pipe = family.make()
    after = davae.upgrade(pipe)
    with pytest.raises(RuntimeError, match="size mismatch"):
        after.load_lora_weights(tmp_path)
    pipe.load_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="are attached to .*unload_lora_weights"):
        davae.upgrade(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    latent = torch.randn(2, 8, *family.sizes)
    with torch.no_grad():
        want = family.predict(pipe.transformer, latent[:, :4])
        assert_close(family.predict(davae.upgrade(pipe).transformer, latent)[:, :4], want, 1e-5)
