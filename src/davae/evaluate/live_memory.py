"""How much memory a training step needs, found out without it: the step runs on fake tensors, which hold nothing.

Autograd, autocast and gradient checkpointing are PyTorch's own; only the kernels are left out.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Step = Callable[[Any], Tensor]
"""(network) -> scalar loss."""


def peak_of_step(network: nn.Module, step: Callable[[torch.device], Step], autocast: bool) -> int:
    """Bytes that one forward and backward pass needs beside weights and gradients, at its worst moment.

    Args:
        network: on any device, the meta device among them; it is left as it is.
        step: (device) -> the step, whose inputs are made on that device.
        autocast: bfloat16 autocast. As CUDA's, it keeps a copy of every trained matrix for the whole forward pass.
    """
    with FakeTensorMode():
        values = stand_ins(network, torch.device("cpu"))
        loss = step(torch.device("cpu"))
        gradients = [value.grad for value in values.values() if value.grad is not None]
        with _cuda_norms(network), LiveStorages(ignored=[*values.values(), *gradients]) as live:
            run_step(network, values, loss, autocast)
    return live.peak


def run_step(network: nn.Module, values: Mapping[str, Tensor], loss: Step, autocast: bool = False) -> None:
    """Forward and backward with other weights and buffers in the network's place."""
    functional_call(_Step(network, loss, autocast), {f"network.{name}": value for name, value in values.items()}, ())


def stand_ins(network: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Empty parameters and buffers of a network by name, on a device; trained ones have gradients already.

    Args:
        network: on any device.
        device: of the new ones.
        dtype: of all floating-point ones; None keeps the network's.
    """

    def empty(tensor: Tensor) -> Tensor:
        kept = dtype is None or not tensor.is_floating_point()
        return torch.empty(tensor.shape, dtype=tensor.dtype if kept else dtype, device=device)

    values: dict[str, Tensor] = {name: empty(buffer) for name, buffer in network.named_buffers()}
    for name, weight in network.named_parameters():
        values[name] = nn.Parameter(empty(weight), requires_grad=weight.requires_grad)
        if weight.requires_grad:
            values[name].grad = empty(weight)
    return values


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block, and forgets those that are freed.

    Args:
        ignored: tensors that were there before.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        """Most bytes at any time."""
        self._kept = [tensor.untyped_storage() for tensor in ignored]
        self._known: dict[int, Any] = {storage._cdata: storage for storage in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the operation happen, then look at what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # else a view, or an operation in place
            self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _drop(self, key: int, size: int) -> None:
        del self._known[key]
        self.bytes -= size


class _Step(nn.Module):
    """`functional_call` swaps weights during a forward; recomputing in the backward pass needs them too."""

    def __init__(self, network: nn.Module, loss: Step, autocast: bool) -> None:
        super().__init__()
        self.network, self._loss, self._autocast = network, loss, autocast

    def forward(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            loss = self._loss(self.network)
        loss.backward()


@contextmanager
def _cuda_norms(network: nn.Module) -> Iterator[None]:
    """Norms compute in fp32 under autocast: CUDA's autocast does so, the CPU's does not."""

    def widen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.float() for tensor in inputs) if torch.is_autocast_enabled("cpu") else inputs

    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)]
    handles = [norm.register_forward_pre_hook(widen) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
