"""LightningDiT against the reference's numbers, its checkpoint layout and diffusers' contract."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from conftest import assert_close
from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline
from tiny_pair import build_tiny_pair

TINY: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 6,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_classes": 5,
}
GOLDEN: dict[str, dict[str, Any]] = {
    "a_base": {"in_channels": 8, "hidden_size": 48, "num_layers": 2, "num_attention_heads": 4},
    "b_qknorm": {
        "in_channels": 12,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "qk_norm": True,
    },
    "c_wo_shift": {
        "in_channels": 8,
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 4,
        "adaln_shift": False,
    },
    "d_patch2": {
        "in_channels": 8,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 2,
    },
}


def tiny(seed: int = 0, **changes: Any) -> LightningDiT:
    """A small model with weights that do something (a fresh one predicts zero)."""
    model = LightningDiT(**(TINY | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 6, 4, 4), torch.rand(batch), torch.arange(batch) % 6


@pytest.mark.parametrize("case", GOLDEN)
def test_forward_is_the_references(golden, case: str) -> None:
    tensors = golden(f"lightningdit_{case}")
    model = LightningDiT(sample_size=8, num_classes=10, **GOLDEN[case]).eval()
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if "weights." in key}
    for name in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        assert_close(model.state_dict()[name], weights[name], 1e-5)  # made here, before they are loaded
    model.load_state_dict(weights, strict=True)

    seen: dict[str, Tensor] = {}

    def at_entry(_module: Any, args: tuple[Any, ...]) -> None:
        seen["tokens"], seen["cond"] = args[0], args[1]

    model.blocks[0].register_forward_pre_hook(at_entry)
    model.blocks[0].register_forward_hook(lambda _module, _args, out: seen.update(block0=out))
    model.blocks[-1].register_forward_hook(lambda _module, _args, out: seen.update(block_last=out))
    with torch.no_grad():
        seen["forward"] = model(tensors["in.x"], tensors["in.t"], tensors["in.y"]).sample
    for name in ("tokens", "cond", "block0", "block_last", "forward"):
        assert_close(seen[name], tensors[f"out.{name}"], 1e-4)


@pytest.mark.parametrize(
    ("changes", "parameters", "tensors", "digest"),
    [
        ({}, 675_256_736, 351, "caca2123da1f939d"),  # the public LightningDiT-XL/1
        ({"in_channels": 128, "qk_norm": True}, 675_482_048, 407, "da3e8d0f33cd54e8"),  # upgraded
    ],
)
def test_xl_has_the_layout_of_public_checkpoints(
    changes: dict[str, Any], parameters: int, tensors: int, digest: str
) -> None:
    with torch.device("meta"):
        model = LightningDiT(**LIGHTNINGDIT_SIZES["XL"], **changes)
    state = model.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(state) == tensors
    assert state["blocks.27.mlp.w12.weight"].shape == (6144, 1152)
    assert state["y_embedder.embedding_table.weight"].shape == (1001, 1152)
    # Names and shapes of the checkpoint, one "name AxBxC" per line in the order of names.
    lines = "\n".join(f"{name} {'x'.join(map(str, state[name].shape))}" for name in sorted(state))
    assert hashlib.sha256(lines.encode()).hexdigest().startswith(digest)


@pytest.mark.parametrize(
    ("size", "millions", "width"),
    [("B", 130.6, 2048), ("L", 458.2, 2730), ("XL", 675.3, 3072), ("1p0B", 1029.4, 4096), ("1p6B", 1631.8, 4778)],
)
def test_sizes_are_the_published_ones(size: str, millions: float, width: int) -> None:
    # L was published with patch 2, whose count differs in the patch embedding, the head and the positions.
    patch = {"patch_size": 2} if size == "L" else {}
    with torch.device("meta"):
        model = LightningDiT(**LIGHTNINGDIT_SIZES[size], **patch)
    assert model.blocks[0].mlp.w3.in_features == width
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.05)


def test_fresh_model_predicts_zero_and_is_initialised_like_the_reference() -> None:
    model = LightningDiT(**TINY)
    assert torch.equal(model(*inputs()).sample, torch.zeros(3, 6, 4, 4))
    assert not model.blocks[0].adaLN_modulation[1].weight.any()
    assert not model.blocks[1].attn.qkv.bias.any()
    assert model.t_embedder.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.y_embedder.embedding_table.weight.std().item() == pytest.approx(0.02, rel=0.2)
    bound = (6 / (6 + 32)) ** 0.5  # xavier over the flattened patch of 6 values
    assert 0.9 * bound < model.x_embedder.proj.weight.abs().max().item() <= bound
    bound = (6 / (32 + 96)) ** 0.5
    assert 0.9 * bound < model.blocks[0].attn.qkv.weight.abs().max().item() <= bound


def test_saved_and_loaded_model_is_the_same(tmp_path: Path) -> None:
    model = tiny(qk_norm=True)
    model.save_pretrained(tmp_path)
    loaded = LightningDiT.from_pretrained(tmp_path)
    assert all(loaded.config[name] == value for name, value in model.config.items() if not name.startswith("_"))
    assert not loaded.pos_embed.requires_grad
    assert loaded.blocks[0].attn.qkv.weight.requires_grad
    arguments = inputs()
    assert torch.equal(loaded(*arguments).sample, model(*arguments).sample)
    assert torch.equal(loaded(*arguments, return_dict=False)[0], model(*arguments).sample)


def test_bfloat16_model_keeps_its_rotary_tables(tmp_path: Path) -> None:
    model = tiny(qk_norm=True)
    model.save_pretrained(tmp_path)
    loaded = LightningDiT.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert loaded.feat_rope.freqs_cos.dtype == torch.float32
    latent, time, labels = inputs()
    got = loaded(latent.bfloat16(), time, labels).sample
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), model(latent, time, labels).sample, 0.05)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_autocast_is_close_and_trains(qk_norm: bool) -> None:
    model, arguments = tiny(qk_norm=qk_norm), inputs()
    exact = model(*arguments).sample
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(*arguments).sample
    assert_close(velocity.float(), exact, 0.05)
    velocity.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


def adapted(model: LightningDiT) -> LightningDiT:
    """Frozen, with LoRA on its blocks; no adapter is left at its zero start."""
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["qkv", "w3"]), model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("kind", ["whole", "lora", "frozen but for the last block"])
def test_gradient_checkpointing_does_not_change_gradients(kind: str) -> None:
    model, arguments = tiny(qk_norm=True), inputs()
    if kind == "lora":  # what enters a block needs no gradient: reentrant checkpointing would give none
        model = adapted(model)
    elif kind != "whole":
        model.requires_grad_(False)
        model.blocks[-1].requires_grad_(True)
    runs: list[int] = []
    model.blocks[0].attn.register_forward_pre_hook(lambda *_: runs.append(1))
    gradients = []
    for is_enabled in (False, True):
        if is_enabled:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(*arguments).sample.square().mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    # Once without; with it once forward, and again where its gradients are asked for.
    assert len(runs) == (2 if kind.startswith("frozen") else 3)
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        assert_close(gradients[1][name], gradient, 1e-6)
    model.disable_gradient_checkpointing()
    runs.clear()
    model(*arguments).sample.mean().backward()
    assert len(runs) == 1


def test_nothing_is_recomputed_without_gradients() -> None:
    model, runs = tiny(), []
    model.enable_gradient_checkpointing()
    model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        model(*inputs())
    assert len(runs) == 1


def test_no_class_is_the_last_label_and_training_mode_drops_nothing() -> None:
    model = tiny()
    assert model.null_class == 5
    latent, time, _ = inputs()
    unconditional = model(latent, time, torch.full((3,), model.null_class)).sample
    conditional = model(latent, time, torch.zeros(3, dtype=torch.int64)).sample
    assert (unconditional - conditional).abs().max() > 1e-3
    assert torch.equal(model.train()(latent, time, torch.full((3,), model.null_class)).sample, unconditional)


def test_wrong_inputs_are_explained() -> None:
    model, (latent, time, labels) = tiny(), inputs()
    with pytest.raises(ValueError, match=r"got shape \(3, 5, 4, 4\), allowed \[B, 6, 4, 4\]"):
        model(latent[:, :5], time, labels)
    with pytest.raises(ValueError, match=r"got \(3, 4\), allowed \(4, 4\)"):
        model(latent[:, :, :3], time, labels)
    with pytest.raises(ValueError, match=r"timestep \(1,\).*allowed \(3,\)"):
        model(latent, time[:1], labels)
    with pytest.raises(ValueError, match="sample_size=5, patch_size=2"):
        LightningDiT(**(TINY | {"sample_size": 5, "patch_size": 2}))
    with pytest.raises(ValueError, match="hidden_size=30"):
        LightningDiT(**(TINY | {"hidden_size": 30}))


def test_weights_of_another_function_are_not_loaded(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "without")
    tiny(qk_norm=True).save_pretrained(tmp_path / "with")
    with pytest.raises(ValueError, match=r"without are of another model: qk_norm is on .* off in the weights"):
        LightningDiT.from_pretrained(tmp_path / "without", qk_norm=True)
    with pytest.raises(ValueError, match=r"off in the model and on in the weights.*qk_norm \(use_qknorm\) to true"):
        LightningDiT.from_pretrained(tmp_path / "with", qk_norm=False)
    with pytest.raises(
        ValueError, match=r"incomplete: 14 tensors of LightningDiT are missing, for example blocks\.2"
    ):
        LightningDiT.from_pretrained(tmp_path / "with", num_layers=3)
    model, found = LightningDiT.from_pretrained(tmp_path / "with", output_loading_info=True)
    assert model.config.qk_norm
    assert not found["missing_keys"]


def test_a_pair_with_weights_of_another_function_is_not_loaded(tmp_path: Path) -> None:
    folder = build_tiny_pair(tmp_path / "pair")
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"qk_norm": false', '"qk_norm": true'))
    with pytest.raises(ValueError, match="qk_norm is on in the model and off in the weights"):
        LightningDiTPipeline.from_pretrained(folder)


@pytest.mark.parametrize("adaln_shift", [True, False])
def test_weights_may_be_in_half_precision_altogether(adaln_shift: bool) -> None:
    """`to` casts the rotary tables too, which loading keeps in float32."""
    model, (latent, time, labels) = tiny(adaln_shift=adaln_shift, qk_norm=True), inputs()
    exact = model(latent, time, labels).sample
    rounded = model.to(torch.bfloat16)
    assert rounded.feat_rope.freqs_cos.dtype == torch.bfloat16
    assert_close(rounded(latent.bfloat16(), time, labels).sample.float(), exact, 0.08)


def test_stored_name_never_moves() -> None:
    assert LightningDiT.__module__ == "davae"
