"""Copies without values: a network or a task whose every tensor has a shape and a dtype, and no memory.

Fake tensors (PyTorch's FakeTensorMode) follow autograd, autocast and gradient checkpointing like tensors of the CPU;
tensors of the meta device are enough where nothing but shapes is asked for. Either way only the kernels are left out.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class StandIn(Generic[T]):
    """A copy of something that holds tensors; the original stays as it is.

    Args:
        original: a module, a task, or anything else that `copy.deepcopy` takes. Its tensors may be on any device.
        device: where the copy seems to be. On "cpu" its tensors are fake and live in `mode`. On "meta" they need no
            mode, and all floating-point ones are float32, because autocast does not know that device.
    """

    def __init__(self, original: T, device: torch.device) -> None:
        self.device = device
        self.mode: AbstractContextManager[object] = nullcontext() if device.type == "meta" else FakeTensorMode()
        """To be active wherever the copy computes."""
        copying = _Copying(self.like)
        with copying:
            self.copy = copy.deepcopy(original)
        self.tensors: Sequence[Tensor] = copying.made
        """Everything that the copy holds, each once: weights, buffers, constants."""

    def like(self, tensor: Tensor) -> Tensor:
        """A tensor of this shape beside the copy's."""
        whole = self.device.type == "meta" and tensor.is_floating_point()
        with self.mode:
            return torch.empty(tensor.shape, dtype=torch.float32 if whole else tensor.dtype, device=self.device)

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch for the copy.

        Args:
            batch: tensors of the meta device are shapes alone; others are values that the task reads as numbers, and
                stay as they are.
        """
        return {name: self.like(tensor) if tensor.is_meta else tensor for name, tensor in batch.items()}


class _Copying(TorchFunctionMode):
    """Inside, `copy.deepcopy` puts another tensor in the place of each; one that is held twice is so in the copy."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self._make = make

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Parameters are copied by `clone`, other tensors by `__deepcopy__`."""
        if func is Tensor.clone and isinstance(args[0], Tensor):
            return self._replaced(args[0])
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            assert isinstance(tensor, Tensor) and isinstance(memo, dict)
            if id(tensor) not in memo:
                memo[id(tensor)] = self._replaced(tensor)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))

    def _replaced(self, tensor: Tensor) -> Tensor:
        self.made.append(self._make(tensor))
        return self.made[-1]
