"""Cost against counts by hand and against the same step on real tensors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import davae
from backbones.transformers import flux_transformer, sana_transformer
from davae.backbones.lora import LoraSettings, prepare_lora
from davae.backbones.public import PUBLIC, public_model
from davae.backbones.registry import backbone_of
from davae.evaluate.cost import (
    Flops,
    Workload,
    count_flops,
    count_parameters,
    estimate_memory,
    hours,
    image_flops,
    readable,
)
from davae.evaluate.gpus import GPUS, gpu_like, named_gpu
from davae.evaluate.live_memory import LiveStorages, peak_of_step
from tiny_text import tiny_sd3

WIDTH, LAYERS, CHANNELS, GRID = 16, 2, 4, 4


def tiny_dit() -> davae.LightningDiT:
    return davae.LightningDiT(
        sample_size=GRID,
        in_channels=CHANNELS,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_attention_heads=2,
        num_classes=3,
    ).train()


def linear(rows: int, taken: int, given: int) -> int:
    return 2 * rows * taken * given


def by_hand() -> tuple[int, int]:
    """(forward, what the backward pass saves because an input needs no gradient) of `tiny_dit` for one image."""
    tokens, mlp = GRID * GRID, WIDTH * 4 * 2 // 3
    attention = 2 * (2 * tokens * tokens * WIDTH)  # q k^T, then weights times v
    block = (
        linear(tokens, WIDTH, 3 * WIDTH)
        + attention
        + linear(tokens, WIDTH, WIDTH)
        + linear(tokens, WIDTH, 2 * mlp)
        + linear(tokens, mlp, WIDTH)
        + linear(1, WIDTH, 6 * WIDTH)
    )
    embedder, time_first = linear(tokens, CHANNELS, WIDTH), linear(1, 256, WIDTH)
    time = time_first + linear(1, WIDTH, WIDTH)
    final = linear(1, WIDTH, 2 * WIDTH) + linear(tokens, WIDTH, CHANNELS)
    return embedder + time + LAYERS * block + final, embedder + time_first


def test_flops_are_those_counted_by_hand() -> None:
    model = tiny_dit()
    forward, saved = by_hand()
    got = count_flops(model, Workload.of(model, GRID, GRID, 0))
    assert got.forward == forward
    assert got.backward == 2 * forward - saved


def test_checkpointing_computes_the_blocks_again() -> None:
    model = tiny_dit()
    work = Workload.of(model, GRID, GRID, 0)
    plain = count_flops(model, work)
    model.enable_gradient_checkpointing()
    again = count_flops(model, work)
    assert again.forward == plain.forward
    assert 0.8 * plain.forward < again.backward - plain.backward <= plain.forward


def test_lora_adds_its_layers_and_spares_frozen_weights() -> None:
    model = davae.widen(tiny_sd3(), 4).train()
    work = Workload.of(model, GRID, GRID, 12)
    full = count_flops(model, work)
    layers = [model.get_submodule(path) for path in backbone_of(model).lora_modules(model)]
    adapters = 2 * sum(layer.in_features + layer.out_features for layer in layers)
    prepare_lora(model, LoraSettings(rank=2), 0)
    counted = count_parameters(model)
    heads = sum(
        weight.numel() for path in ("pos_embed.proj", "proj_out") for weight in model.get_submodule(path).parameters()
    )
    assert counted.adapters == adapters
    assert counted.trained == adapters + heads
    adapted = count_flops(model, work)
    assert full.forward < adapted.forward
    assert adapted.backward < 1.9 * adapted.forward  # 2 where every weight is trained
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}  # it is left as it was


def test_trained_parameters_of_sd35_medium_are_the_papers() -> None:
    model = davae.widen(PUBLIC["SD3.5-Medium"].build(), 16)
    prepare_lora(model, LoraSettings(rank=256), 0)
    counted = count_parameters(model)
    assert round(counted.adapters / 1e6, 1) == 245.0
    assert round(counted.trained / 1e6, 1) == 245.4


def measured(model: nn.Module, step: Callable[[torch.device], Callable[[nn.Module], Tensor]]) -> int:
    """Peak of the same step on real tensors."""
    loss = step(torch.device("cpu"))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    known = [*model.parameters(), *model.buffers(), *(w.grad for w in model.parameters() if w.grad is not None)]
    with LiveStorages(known) as live:
        loss(model).backward()
    return live.peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_those_of_a_real_step(checkpointed: bool) -> None:
    model = tiny_dit()
    if checkpointed:
        model.enable_gradient_checkpointing()
    work = Workload.of(model, GRID, GRID, 0)

    def step(device: torch.device) -> Callable[[nn.Module], Tensor]:
        latent, time, conditioning = work.inputs(8, device)
        return lambda network: network(latent, time, conditioning["label"]).sample.square().mean()

    assert peak_of_step(model, step, autocast=False) == measured(model, step)


def test_activations_of_a_chain_are_those_counted_by_hand() -> None:
    width, rows, layers = 64, 1024, 5
    chain = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def step(device: torch.device) -> Callable[[nn.Module], Tensor]:
        given = torch.zeros(rows, width, device=device)
        return lambda network: network(given).sum()

    # Outputs of the layers; the last one is freed after its sum, so that the peak comes in the backward pass: the
    # outputs before it, the gradient of an input and of an output, the gradient of a weight.
    tensor, weight = 4 * rows * width, 4 * width * width
    peak = peak_of_step(chain, step, autocast=False)
    assert (layers - 1) * tensor < peak <= (layers + 2) * tensor + 2 * weight


def test_memory_by_part() -> None:
    model = tiny_dit()
    work, count = Workload.of(model, GRID, GRID, 0), count_parameters(model)
    memory = estimate_memory(model, work, 8, "fp32", averaged=True)
    assert memory.gradients == memory.average == 4 * count.trained
    assert memory.optimizer == 8 * count.trained
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert memory.weights == {"float32": 4 * (count.total + buffers)}
    assert memory.total > memory.activations > 0
    assert estimate_memory(model, work, 16, "fp32", averaged=False).activations > 1.5 * memory.activations
    model.enable_gradient_checkpointing()
    assert estimate_memory(model, work, 8, "fp32", averaged=True).activations < 0.8 * memory.activations


@pytest.mark.parametrize("make", [flux_transformer, sana_transformer], ids=["flux", "sana"])
def test_other_families_with_a_velocity(make: Callable[[], nn.Module]) -> None:
    model = make().train()
    work = Workload.of(model, 8, 8, 5)
    flops = count_flops(model, work)
    assert 1.5 * flops.forward < flops.backward <= 2 * flops.forward
    assert estimate_memory(model, work, 2, "bf16", averaged=False).activations > 0


def test_frozen_weights_in_bf16_are_counted_as_such() -> None:
    model = davae.widen(tiny_sd3(), 4).train()
    prepare_lora(model, LoraSettings(rank=2, frozen_precision="bf16"), 0)
    model.enable_gradient_checkpointing()
    memory = estimate_memory(model, Workload.of(model, GRID, GRID, 12), 2, "bf16", averaged=False)
    assert memory.weights.keys() == {"float32", "bfloat16"}
    assert memory.average == 0
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    assert hooks == 0  # the norms are as they were


def test_hours_and_images() -> None:
    assert hours(989e12 * 3600, named_gpu("h100"), "bf16", utilisation=0.5) == pytest.approx(2)
    assert hours(989e12 * 3600, named_gpu("h100"), "bf16", utilisation=0.5, devices=4) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no bfloat16"):
        hours(1.0, named_gpu("T4"), "bf16")
    assert image_flops(Flops(forward=10, backward=20), steps=3, guided=True) == 60
    assert readable(1.234e12, "FLOP") == "1.23 TFLOP"


def test_devices_by_name() -> None:
    assert named_gpu("h100-pcie") is GPUS["H100 PCIe"]
    with pytest.raises(ValueError, match="known are T4, L4"):
        named_gpu("GeForce 256")
    found = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
        "NVIDIA L40S": "L40S",
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A100-SXM4-80GB": "A100",
    }
    for reported, name in found.items():
        assert gpu_like(reported) is GPUS[name], reported
    assert gpu_like("Quadro K600") is None


def test_published_models_by_their_names_on_the_hub() -> None:
    assert public_model("stabilityai/stable-diffusion-3.5-medium") == "SD3.5-Medium"
    assert public_model("LightningDiT-XL/1") == "LightningDiT-XL/1"
    assert public_model("somebody/else") is None
    assert sum(weight.numel() for weight in PUBLIC["SD3-Medium"].build().parameters()) == 2_028_328_000


def test_a_family_without_velocity_is_refused() -> None:
    model = PUBLIC["DiT-XL/2"].build()
    with pytest.raises(ValueError, match="conditioning of a DiTTransformer2DModel is not known"):
        Workload.of(model, 32, 32, 0)
