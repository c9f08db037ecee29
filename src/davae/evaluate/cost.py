"""What a training step and an image cost: parameters, FLOPs, memory and hours, without weights or a GPU.

Everything is counted on a network without values (the meta device, fake tensors). FLOPs are 2 a multiply-add of
matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them; the rest is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from davae.backbones.conditioning import Shapes, conditioning_shapes
from davae.backbones.registry import backbone_of
from davae.evaluate.gpus import Gpu
from davae.evaluate.live_memory import Step, peak_of_step, run_step, stand_ins

UTILISATION = 0.4
"""Share of the peak rate that trainings of large transformers reach; 0.3 to 0.5 are common."""
ASSUMPTIONS = {
    "FLOPs": "matrix products, convolutions and attention, 2 a multiply-add; what gradient checkpointing computes "
    "again counts, the optimizer does not",
    "memory": "AdamW has two fp32 moments of every trained parameter, the average a copy of it; activations are the "
    "worst moment of a forward and backward pass with fused attention, counted on fake tensors, with the copies that "
    "autocast makes of weights; one process, without the CUDA context and what the allocator cannot use again",
    "hours": f"{UTILISATION:.0%} of the device's dense peak, which small models and batches do not reach; trainings "
    "of transformers alone, without autoencoders, caches, previews and evaluation",
    "image": "the transformer alone, without text encoders and decoder",
}
"""What every number rests on."""


@dataclass(frozen=True)
class Workload:
    """What a transformer is given.

    Args:
        latent: (K, h, w) of an image.
        conditioning: see `Shapes`.
    """

    latent: tuple[int, int, int]
    conditioning: Shapes

    @classmethod
    def of(cls, transformer: Any, height: int, width: int, max_length: int) -> "Workload":
        """Of a transformer of a known family, for a latent of this height and width and prompts of this length."""
        backbone = backbone_of(transformer)
        channels = backbone.latent_channels(transformer.config)
        return cls((channels, height, width), conditioning_shapes(backbone, transformer.config, max_length))

    def inputs(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(latent [B, K, h, w], native time [B], conditioning), with no values that mean anything."""
        conditioning = {
            name: torch.zeros((batch, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in self.conditioning.items()
        }
        return torch.zeros(batch, *self.latent, device=device), torch.zeros(batch, device=device), conditioning


@dataclass(frozen=True)
class Parameters:
    """How many numbers a network has."""

    total: int
    trained: int
    adapters: int
    """Of LoRA; they are among the trained ones."""


@dataclass(frozen=True)
class Flops:
    """Of one image in training."""

    forward: int
    backward: int
    """With what gradient checkpointing computes again."""

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Memory:
    """Bytes that a training needs on its device."""

    weights: Mapping[str, int]
    """dtype -> bytes, buffers included."""
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.weights.values()) + self.gradients + self.optimizer + self.average + self.activations


def count_parameters(network: nn.Module) -> Parameters:
    """Count parameters; buffers are none."""
    counted = [(name, weight.numel(), weight.requires_grad) for name, weight in network.named_parameters()]
    return Parameters(
        total=sum(count for _, count, _ in counted),
        trained=sum(count for _, count, is_trained in counted if is_trained),
        adapters=sum(count for name, count, _ in counted if ".lora_" in name),
    )


def count_flops(transformer: Any, workload: Workload) -> Flops:
    """FLOPs of one image in training, with gradient checkpointing where the transformer has it switched on.

    Args:
        transformer: of a family that is trained by its `velocity`, on any device; it is left as it is.
        workload: see `Workload`.
    """
    device = torch.device("meta")
    forward = 0
    step = _step(transformer, workload, 1)(device)

    def counted(network: nn.Module) -> Tensor:
        nonlocal forward
        loss = step(network)
        forward = counter.get_total_flops()
        return loss

    with FlopCounterMode(display=False, custom_mapping=_COUNTED) as counter:
        run_step(transformer, stand_ins(transformer, device, torch.float32), counted)
    return Flops(forward, counter.get_total_flops() - forward)


def estimate_memory(transformer: Any, workload: Workload, micro_batch: int, precision: str, averaged: bool) -> Memory:
    """Memory of a training with AdamW, see `ASSUMPTIONS`.

    Args:
        transformer: as it is trained: widened, with adapters, dtypes, gradient checkpointing; on any device.
        workload: see `Workload`.
        micro_batch: images at once.
        precision: "bf16" (autocast) or "fp32".
        averaged: whether an exponential moving average is kept.
    """
    weights: dict[str, int] = {}
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        name = str(tensor.dtype).removeprefix("torch.")
        weights[name] = weights.get(name, 0) + tensor.numel() * tensor.element_size()
    trained = [weight for weight in transformer.parameters() if weight.requires_grad]
    count = sum(weight.numel() for weight in trained)
    return Memory(
        weights=weights,
        gradients=sum(weight.numel() * weight.element_size() for weight in trained),
        optimizer=2 * 4 * count,
        average=4 * count if averaged else 0,
        activations=peak_of_step(transformer, _step(transformer, workload, micro_batch), precision == "bf16"),
    )


def hours(flops: float, gpu: Gpu, precision: str, utilisation: float = UTILISATION, devices: int = 1) -> float:
    """Hours that so many FLOPs take.

    Raises:
        ValueError: the device does not compute in this precision.
    """
    return flops / (gpu.peak(precision) * utilisation * devices) / 3600


def image_flops(flops: Flops, steps: int, guided: bool) -> int:
    """Of drawing one image, decoding left out."""
    return flops.forward * steps * (2 if guided else 1)


def _convolution_backward(
    grad_shape: Any,
    input_shape: Any,
    weight_shape: Any,
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: tuple[bool, bool, bool],
    **_: Any,
) -> int:
    """As many as forward for each gradient asked for. torch's own count is wrong for convolutions with groups."""
    positions = input_shape if transposed else grad_shape
    return 2 * prod(positions) * prod(weight_shape[1:]) * sum(output_mask[:2])


_COUNTED = {torch.ops.aten.convolution_backward: _convolution_backward}


def _step(transformer: Any, workload: Workload, batch: int) -> Any:
    """(device) -> step: the mean square of the velocity, which any loss of the library resembles in cost."""
    velocity = backbone_of(transformer).velocity
    if velocity is None:
        raise ValueError(
            f"The cost of training a {type(transformer).__name__} cannot be told: its family has no velocity. "
            f"Take a model that predicts velocity."
        )

    def on(device: torch.device) -> Step:
        latent, time, conditioning = workload.inputs(batch, device)
        return lambda network: velocity(network, latent, time, conditioning).float().square().mean()

    return on


def readable(number: float, unit: str = "") -> str:
    """ "1.23 T" of 1.23e12, with three digits."""
    for limit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".rstrip()
