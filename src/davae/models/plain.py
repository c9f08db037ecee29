"""Owner of which weights can be copied and grown: plain ones, which a model holds itself, with their values.

Other libraries change a loaded model in place: they wrap, adapt, cast, quantise or offload it. Each leaves a trace,
and is refused by it before anything is copied: the copy would be another model, or fail when it draws.
"""

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

PLAIN_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def expect_plain(model: nn.Module, action: str, *, outline: bool = False, adapters: bool = False) -> None:
    """Refuse a model whose weights are not plain. It is left as it is.

    Args:
        model: of any class.
        action: what was asked for, in the message: "widen", "upgrade".
        outline: whether a model without any values, wholly on the meta device, may pass.
        adapters: whether LoRA may be attached.

    Raises:
        ValueError: what was done to the weights, and what to do first.
    """
    fault = next(_faults(model, outline, adapters), None)
    if fault is not None:
        reason, remedy = fault
        raise ValueError(
            f"Cannot {action} this {type(model).__name__}: {reason}; allowed are plain weights in fp32, bf16 or "
            f"fp16. {remedy}"
        )


def is_outline(model: nn.Module) -> bool:
    """Whether a model has no values at all: every tensor is on the meta device."""
    return all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _faults(model: nn.Module, outline: bool, adapters: bool) -> Iterator[tuple[str, str]]:
    """(what was done to a model, what to do first), the most telling first."""
    if any(isinstance(module, OptimizedModule) for module in model.modules()):
        yield "torch.compile wraps it", "Give the model inside, its _orig_mod, and compile what comes back."
    if isinstance(model, DataParallel | DistributedDataParallel):
        yield f"{type(model).__name__} wraps it", "Give the model inside, its module, and wrap what comes back."
    weights = dict(model.named_parameters())
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(weight, DTensor) for weight in weights.values()
    ):
        yield "its weights are sharded over processes", "Load it again without sharding, and shard what comes back."
    adapted = [path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if adapted and not adapters:
        yield (
            f"adapters (LoRA) are attached to {len(adapted)} layers, for example {adapted[0]}",
            "Fold them in by the pipeline's fuse_lora() and then unload_lora_weights(), or unload them alone.",
        )
    hooks = _hooks(model)
    if "layerwise_casting" in hooks:
        stored = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
        yield (
            f"layerwise casting stores its weights in {' and '.join(stored)}",
            "Load it again without, and call enable_layerwise_casting on what comes back.",
        )
    foreign = {type(weight).__name__ for weight in weights.values() if type(weight) is not nn.Parameter}
    if foreign or getattr(model, "is_quantized", False):
        yield (
            f"its weights are quantised ({', '.join(sorted(foreign)) or 'by its quantization_config'})",
            "Load it again without quantization_config, or call its dequantize(), and quantise what comes back.",
        )
    if "group_offloading" in hooks:
        yield "group offloading moves its weights", "Load it again without, and offload what comes back."
    if "accelerate" in hooks:
        yield (
            "accelerate's hooks move its weights (offload, or a device map)",
            "Call remove_all_hooks() of its pipeline, and offload what comes back.",
        )
    dtypes = {str(weight.dtype) for weight in weights.values() if weight.dtype not in PLAIN_DTYPES}
    if dtypes:
        yield f"its weights are in {', '.join(sorted(dtypes))}", "Load it again with dtype=torch.bfloat16."
    absent = [name for name, weight in weights.items() if weight.is_meta]
    if absent and not (outline and is_outline(model)):
        yield (
            f"{len(absent)} of its {len(weights)} weights have no values (meta device), for example {absent[0]}",
            "Load it with its weights.",
        )


def _hooks(model: nn.Module) -> set[str]:
    """Names of the hooks on any part of a model: diffusers', and "accelerate" for any of accelerate's."""
    names: set[str] = set()
    for module in model.modules():
        if hasattr(module, "_hf_hook"):
            names.add("accelerate")
        registry: Any = getattr(module, "_diffusers_hook", None)
        if registry is not None:
            names |= registry.hooks.keys()
    return names
