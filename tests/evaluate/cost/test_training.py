"""Cost of trainings against counts by hand and against the same training on real tensors."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

import davae
from backbones.transformers import flux_transformer, sana_transformer
from davae.backbones.lora import prepare_lora
from davae.backbones.public import PUBLIC
from davae.backbones.registry import backbone_of
from davae.backbones.settings import LoraSettings
from davae.backbones.widening import widen_with_report
from davae.core.layout import LatentLayout
from davae.core.names import Precision
from davae.evaluate.cost.cuda_autocast import cast_as_cuda
from davae.evaluate.cost.geometry import perceptual_network, public_autoencoder
from davae.evaluate.cost.live_memory import LiveStorages
from davae.evaluate.cost.memory import count_parameters, size_of
from davae.evaluate.cost.training import training_cost, training_flops, training_memory
from davae.evaluate.cost.workload import Workload, image_batch
from davae.models.perceptual import LPIPS
from davae.models.vision_features import FoundationFeatures
from davae.train.batch import Batch
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.loop import train
from davae.train.objective import (
    AdversarialConfig,
    AutoencoderConfig,
    PerceptualConfig,
    TokenizerConfig,
    VisionAlignConfig,
)
from davae.train.reconstructor import PlainReconstructor, UpgradedReconstructor
from davae.train.settings import OptimConfig
from davae.train.task import Learner, Loss, Task
from davae.train.tokenizer import TokenizerTask
from davae.train.vision_alignment import VisionAlignment
from tiny_pair import tiny_autoencoder
from tiny_text import tiny_sd3

WIDTH, LAYERS, CHANNELS, GRID = 16, 2, 4, 4
SIDE = 64


def tiny_dit() -> davae.LightningDiT:
    return davae.LightningDiT(
        sample_size=GRID,
        in_channels=CHANNELS,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_attention_heads=2,
        num_classes=3,
    ).train()


def diffusion(transformer: Any, **settings: Any) -> DiffusionTask:
    channels = backbone_of(transformer).latent_channels(transformer.config)
    config = DiffusionConfig(**{"steps": 5, "batch_size": 8, "precision": "fp32", "cosine_weight": 0.0} | settings)
    return DiffusionTask(transformer, LatentLayout(channels, 0), config)


def tiny_kl() -> AutoencoderKL:
    """f4 with 4 channels, and attention in the middle."""
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    shape = {"block_out_channels": (16, 16, 32), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(**levels, **shape).eval()


def tokenizer(base: nn.Module, distance: nn.Module | None = None, **settings: Any) -> TokenizerTask:
    given = {"steps": 4, "batch_size": 4, "accumulation": 2, "precision": "fp32", "ema_decay": 0.9}
    judge = AdversarialConfig(width=8, start_step=2)
    perceptual = None if distance is None else PerceptualConfig()
    config = TokenizerConfig(**given | {"adversarial": judge, "perceptual": perceptual} | settings)
    autoencoder = davae.AutoencoderDA.from_base(base, detail_channels=8).train()
    return TokenizerTask(UpgradedReconstructor(autoencoder, config, seed=0), config, distance)


def real_perceptual() -> LPIPS:
    """VGG16 of random weights."""
    shapes = perceptual_network()
    with torch.no_grad():
        network = shapes.to_empty(device="cpu")
        for weight in network.parameters():
            weight.normal_(std=0.02)
        network.scale.fill_(0.45)
        network.shift.zero_()
    return network


def real(batch: Batch) -> Batch:
    return {
        name: tensor if not tensor.is_meta else torch.zeros(tensor.shape, dtype=tensor.dtype)
        for name, tensor in batch.items()
    }


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
    got = training_flops(diffusion(model), Workload.of(model, GRID, GRID, 0).batch(3), 0)
    assert got.forward == forward
    assert got.backward == 2 * forward - saved


def test_checkpointing_computes_the_blocks_again() -> None:
    model = tiny_dit()
    batch = Workload.of(model, GRID, GRID, 0).batch(1)
    plain = training_flops(diffusion(model), batch, 0)
    again = training_flops(diffusion(model, gradient_checkpointing=True), batch, 0)
    assert again.forward == plain.forward
    assert 0.8 * plain.forward < again.backward - plain.backward <= plain.forward


def test_lora_adds_its_layers_and_spares_frozen_weights() -> None:
    model = davae.widen(tiny_sd3(), 4).train()
    batch = Workload.of(model, GRID, GRID, 12).batch(1)
    full = training_flops(diffusion(model), batch, 0)
    layers = [model.get_submodule(path) for path in backbone_of(model).lora_modules(model)]
    adapters = 2 * sum(layer.in_features + layer.out_features for layer in layers)
    prepare_lora(model, LoraSettings(rank=2), 0)
    counted = count_parameters(model)
    heads = sum(
        weight.numel() for path in ("pos_embed.proj", "proj_out") for weight in model.get_submodule(path).parameters()
    )
    assert counted.adapters == adapters
    assert counted.trained == adapters + heads
    adapted = training_flops(diffusion(model), batch, 0)
    assert full.forward < adapted.forward
    assert adapted.backward < 1.9 * adapted.forward  # 2 where every weight is trained
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}  # it is left as it was


def test_trained_parameters_of_sd35_medium_are_the_papers() -> None:
    model, _ = widen_with_report(PUBLIC["SD3.5-Medium"].build(), 16)
    prepare_lora(model, LoraSettings(rank=256), 0)
    counted = count_parameters(model)
    assert round(counted.adapters / 1e6, 1) == 245.0
    assert round(counted.trained / 1e6, 1) == 245.4


def measured(task: Task, shapes: Batch, step: int) -> int:
    """Peak of the same step on real tensors, beside weights and gradients."""
    known = [tensor for learner in task.learners.values() for tensor in learner.network.state_dict().values()]
    for learner in task.learners.values():
        for weight in learner.network.parameters():
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
            known += [] if weight.grad is None else [weight.grad]
    with LiveStorages(known) as live:
        batch = real(shapes)
        for name, learner in task.learners.items():
            loss = task.loss(name, learner.network, batch, step)
            loss.total.backward()
            batch = batch | loss.outputs
            del loss
    return live.peak


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_those_of_a_real_step(checkpointed: bool) -> None:
    model = tiny_dit()
    task = diffusion(model, gradient_checkpointing=checkpointed)
    batch = Workload.of(model, GRID, GRID, 0).batch(8)
    expected = training_memory(task, batch, 0, "fp32").activations
    assert measured(task, batch, 0) == pytest.approx(expected, rel=0.01)


class Chain:
    """A task of a row of linear layers."""

    def __init__(self, width: int, layers: int) -> None:
        self.network = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        self.learners = {"chain": Learner(self.network, OptimConfig())}
        self.state: dict[str, Tensor] = {}

    def is_active(self, learner: str, step: int) -> bool:
        return True

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        return Loss(network(batch["rows"]).sum())


def test_activations_of_a_chain_are_those_counted_by_hand() -> None:
    width, rows, layers = 64, 1024, 5
    batch = {"rows": torch.empty(rows, width, device="meta"), "position": torch.arange(rows)}
    # The input, and outputs of the layers; the last one is freed after its sum, so that the peak comes in the
    # backward pass: the outputs before it, the gradient of an input and of an output, the gradient of a weight.
    tensor, weight = 4 * rows * width, 4 * width * width
    memory = training_memory(Chain(width, layers), batch, 0, "fp32")
    assert layers * tensor < memory.activations <= (layers + 3) * tensor + 2 * weight
    assert training_flops(Chain(width, layers), batch, 0).forward == layers * linear(1, width, width)


def test_memory_by_part() -> None:
    model = tiny_dit()
    task, work, count = diffusion(model, ema_decay=0.9), Workload.of(model, GRID, GRID, 0), count_parameters(model)
    memory = training_memory(task, work.batch(8), 0, "fp32")
    assert memory.gradients == memory.average == memory.update == 4 * count.trained
    assert memory.optimizer == 8 * count.trained
    buffers = sum(buffer.numel() for buffer in model.buffers())
    assert memory.weights == {"float32": 4 * (count.total + buffers)}
    assert memory.total > memory.activations > 0
    twice = training_memory(diffusion(model), work.batch(16), 0, "fp32")
    assert twice.activations > 1.5 * memory.activations
    assert twice.average == 0
    spared = training_memory(diffusion(model, gradient_checkpointing=True), work.batch(8), 0, "fp32")
    assert spared.activations < 0.8 * memory.activations


@pytest.mark.parametrize("make", [flux_transformer, sana_transformer], ids=["flux", "sana"])
def test_other_families_with_a_velocity(make: Callable[[], nn.Module]) -> None:
    model = make().train()
    work = Workload.of(model, 8, 8, 5)
    flops = training_flops(diffusion(model), work.batch(1), 0)
    assert 1.5 * flops.forward < flops.backward <= 2 * flops.forward
    assert training_memory(diffusion(model), work.batch(2), 0, "bf16").activations > 0


def test_frozen_weights_in_bf16_are_counted_as_such() -> None:
    model = davae.widen(tiny_sd3(), 4).train()
    prepare_lora(model, LoraSettings(rank=2, frozen_precision="bf16"), 0)
    task = diffusion(model, gradient_checkpointing=True)
    memory = training_memory(task, Workload.of(model, GRID, GRID, 12).batch(2), 0, "bf16")
    assert memory.weights.keys() == {"float32", "bfloat16"}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    assert hooks == 0  # the norms are as they were


def test_a_family_without_velocity_is_refused() -> None:
    model = PUBLIC["DiT-XL/2"].build()
    with pytest.raises(ValueError, match="conditions of a DiTTransformer2DModel are not known"):
        Workload.of(model, 32, 32, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_tokenizers_memory_is_that_of_a_real_training(checkpointed: bool, precision: Precision) -> None:
    """LPIPS, discriminator, adaptive weights, frozen base; two micro-batches, so that gradients are there."""
    settings = {"gradient_checkpointing": checkpointed, "precision": precision}
    predicted = training_memory(
        tokenizer(tiny_kl(), perceptual_network(), **settings), image_batch(2, SIDE, SIDE), 3, precision
    )
    task = tokenizer(tiny_kl(), real_perceptual(), **settings)
    assert isinstance(task.perceptual, LPIPS)
    networks = [*(learner.network for learner in task.learners.values()), task.perceptual]
    held = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    assert predicted.weights == {"float32": sum(map(size_of, (t for t in held if t.is_floating_point())))}
    if precision == "bf16":
        cast_as_cuda(task.learners["autoencoder"].network)
    batches = [[real(image_batch(2, SIDE, SIDE)) for _ in range(2)] for _ in range(4)]
    with LiveStorages(held) as live:
        train(task, lambda start: iter(batches[start:]), task.config, Accelerator(cpu=True))
    beside = predicted.gradients + predicted.optimizer + predicted.average
    assert live.peak - beside == pytest.approx(predicted.activations, rel=0.02)


def test_a_base_autoencoders_memory_is_that_of_a_real_step() -> None:
    config = AutoencoderConfig(steps=3, batch_size=2, precision="fp32")
    task = TokenizerTask(PlainReconstructor(tiny_autoencoder().train(), config, seed=0), config)
    batch = image_batch(2, SIDE, SIDE)
    assert measured(task, batch, 0) == pytest.approx(training_memory(task, batch, 0, "fp32").activations, rel=0.02)


def test_a_frozen_foundation_model_counts_as_weights() -> None:
    vision = VisionAlignConfig(model="tiny")
    config = AutoencoderConfig(steps=3, batch_size=2, precision="fp32", vision=vision)
    dinov2 = Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=4))
    alignment = VisionAlignment(vision, FoundationFeatures(dinov2, grid=SIDE // 4), latent_channels=4)
    aligned = TokenizerTask(PlainReconstructor(tiny_kl().train(), config, 0, alignment), config)
    alone = TokenizerTask(PlainReconstructor(tiny_kl().train(), config, 0), config)
    batch = image_batch(2, SIDE, SIDE)
    memories = [training_memory(task, batch, 0, "fp32") for task in (aligned, alone)]
    added = sum(map(size_of, (*dinov2.parameters(), *alignment.projection.parameters())))
    assert memories[0].weights["float32"] - memories[1].weights["float32"] == added
    assert memories[0].activations == pytest.approx(measured(aligned, batch, 0), rel=0.05)


def test_the_root_of_adamws_second_moments_is_a_copy_of_the_weights() -> None:
    weights = [nn.Parameter(torch.zeros(256, 256)) for _ in range(4)]
    optimizer = torch.optim.AdamW(weights, foreach=True)  # as on CUDA
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values()]
    with LiveStorages([*weights, *(weight.grad for weight in weights), *moments]) as live:
        optimizer.step()
    assert live.peak == pytest.approx(sum(map(size_of, weights)), rel=0.01)


def test_a_training_whose_discriminator_begins_later() -> None:
    task, batch = tokenizer(tiny_kl(), steps=10), image_batch(2, SIDE, SIDE)
    cost = training_cost("tokenizer", task, task.config, batch)
    alone, judged = (training_flops(task, batch, step) for step in (0, 9))
    assert alone.total < judged.total
    assert cost.flops.total == pytest.approx((2 * alone.total + 8 * judged.total) / 10, abs=2)
    assert cost.memory == training_memory(task, batch, 9, "fp32")
    assert training_memory(task, batch, 0, "fp32").optimizer < cost.memory.optimizer
    assert cost.parameters.keys() == {"autoencoder", "discriminator"}
    assert (cost.images, cost.at_once) == (40, 2)


def test_gradient_ratios_that_are_measured_now_and_then_cost_less() -> None:
    batch = image_batch(1, SIDE, SIDE)
    always, half, seldom = (
        training_flops(tokenizer(tiny_autoencoder(), adversarial=None, adaptive_every=every), batch, 0, every)
        for every in (1, 2, 10)
    )
    measuring = 2 * (always.forward - half.forward)
    assert measuring > 0
    assert seldom.forward == pytest.approx(always.forward - 0.9 * measuring, rel=1e-6)
    assert always.backward == half.backward == seldom.backward


def test_a_task_is_left_as_it_was() -> None:
    task = tokenizer(tiny_kl())
    before = {name: weight.clone() for name, weight in task.reconstructor.network.named_parameters()}
    training_cost("tokenizer", task, task.config, image_batch(1, SIDE, SIDE))
    assert task.state == {}
    for name, weight in task.reconstructor.network.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None


@pytest.mark.parametrize(("checkpointed", "low", "high"), [(False, 30, 31.5), (True, 10.5, 11.5)])
def test_sd3s_tokenizer_at_1024_px(checkpointed: bool, low: float, high: float) -> None:
    """GiB an image. With norms in bfloat16, which CUDA's autocast does not do, they would be 20 and 7."""
    started = time.process_time()
    config = TokenizerConfig(
        **{"steps": 10, "batch_size": 16, "gradient_checkpointing": checkpointed, "align_adaptive": False},
        **{"perceptual": PerceptualConfig(), "adversarial": AdversarialConfig(adaptive=False, start_step=0)},
    )
    with torch.device("meta"):
        base = public_autoencoder("SD3.5-Medium")
        reconstructor = UpgradedReconstructor(
            davae.AutoencoderDA.from_base(base, detail_channels=16).train(), config, seed=0
        )
        task = TokenizerTask(reconstructor, config, perceptual_network())
    memory = training_memory(task, image_batch(1, 1024, 1024), 9, "bf16")
    assert low < memory.activations / 2**30 < high
    assert memory.largest == "activations"
    assert time.process_time() - started < 30
