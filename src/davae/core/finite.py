"""What is saved holds numbers: neither infinite nor not-a-number."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold anything but finite numbers, in their order. One pass on their devices."""
    floats = {
        # Eight bits have no arithmetic.
        name: tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta
    }
    if not floats or get_total_norm(list(floats.values()), norm_type=float("inf")).isfinite():
        return []
    return [name for name, tensor in floats.items() if not tensor.isfinite().all()]


def bad_rows(tensors: Mapping[str, Tensor]) -> list[int]:
    """Rows [N, ...] that are not finite in any of the tensors."""
    if not non_finite(tensors):
        return []
    finite = [tensor.flatten(1).isfinite().all(1).cpu() for tensor in tensors.values()]
    return [row for row, fine in enumerate(torch.stack(finite).all(0).tolist()) if not fine]
