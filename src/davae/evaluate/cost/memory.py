"""Bytes that a stage needs on its device, part by part, and how many numbers its networks have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from davae.core.precision import dtype_name


@dataclass(frozen=True)
class Parameters:
    """How many numbers a network has."""

    total: int
    trained: int
    adapters: int
    """Of LoRA; they are among the trained ones."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment."""

    weights: Mapping[str, int]
    """dtype -> bytes of everything that is held: frozen networks and buffers too."""
    gradients: int = 0
    optimizer: int = 0
    """Moments of AdamW."""
    average: int = 0
    activations: int = 0
    """Everything else at the worst moment of a forward and backward pass, inputs included."""
    update: int = 0
    """What AdamW's step takes for itself, when the activations are gone."""

    @property
    def total(self) -> int:
        """All that is there at the worst moment."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Name -> bytes of what is there at the worst moment; nothing that is 0."""
        at_worst = "activations" if self.activations >= self.update else "update"
        parts = {f"weights {name}": size for name, size in self.weights.items()}
        parts |= {"gradients": self.gradients, "optimizer": self.optimizer, "average": self.average}
        parts[at_worst] = max(self.activations, self.update)
        return {name: size for name, size in parts.items() if size}

    @property
    def largest(self) -> str:
        """Name of the largest part."""
        return max(self.parts, key=self.parts.__getitem__)


def count_parameters(network: nn.Module) -> Parameters:
    """Count parameters; buffers are none."""
    counted = [(name, weight.numel(), weight.requires_grad) for name, weight in network.named_parameters()]
    return Parameters(
        total=sum(count for _, count, _ in counted),
        trained=sum(count for _, count, is_trained in counted if is_trained),
        adapters=sum(count for name, count, _ in counted if ".lora_" in name),
    )


def bytes_by_dtype(tensors: Iterable[Tensor]) -> dict[str, int]:
    """dtype -> bytes of floating-point tensors; the others are counters of a few bytes."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            name = dtype_name(tensor.dtype)
            sizes[name] = sizes.get(name, 0) + size_of(tensor)
    return sizes


def size_of(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return tensor.numel() * tensor.element_size()
