"""Owner of what the names of dtypes mean, and of computing in less than float32."""

from contextlib import AbstractContextManager
from typing import get_args

import torch

from davae.core.names import Precision

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHORT_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The same by the names that people type."""


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype's name in recipes and manifests, for example "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Computation in a precision on a device; "fp32" switches an autocast around it off.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"Cannot compute in {precision!r}; allowed: {', '.join(get_args(Precision))}.")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
