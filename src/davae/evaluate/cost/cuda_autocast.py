"""CUDA's autocast on a machine without CUDA: the CPU's own leaves more in bfloat16, which needs less memory."""

from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils._pytree import tree_map

_IN_FLOAT32 = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, Upsample2D)
"""Norms and resizing are in `AT_FORALL_FP32` of ATen's autocast_mode.h, which is CUDA's list; the CPU's lacks them.
So a norm keeps its input in float32 for the backward pass, and the activation that follows it does too."""


def cast_as_cuda(network: nn.Module) -> None:
    """Let a network that is about to run under the CPU's autocast cast to float32 where CUDA's does.

    Args:
        network: one without values; it keeps the hooks.
    """
    for module in network.modules():
        if isinstance(module, _IN_FLOAT32):
            module.register_forward_pre_hook(_widen)


def _widen(_: nn.Module, inputs: tuple[object, ...]) -> tuple[object, ...]:
    return tree_map(lambda value: value.float() if isinstance(value, Tensor) else value, inputs)
