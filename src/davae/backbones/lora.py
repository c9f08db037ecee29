"""LoRA on a widened transformer: made for training, and merged. Its heads are trained in full beside it."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from davae.backbones.base import Backbone
from davae.backbones.registry import backbone_of
from davae.backbones.settings import LoraSettings

Transformer = TypeVar("Transformer", bound=nn.Module)
"""A transformer of any class, where the same object comes back."""


def prepare_lora(transformer: Transformer, settings: LoraSettings, seed: int) -> Transformer:
    """Freeze a transformer, inject LoRA on its targets, and free its patch embedder and output head.

    Works on families without `add_adapter` too; the heads are named by exact path, because peft's
    `modules_to_save` would match deeper layers of the same name.

    Args:
        transformer: it is changed and returned.
        settings: see `LoraSettings`.
        seed: of LoRA's first weights.

    Raises:
        ValueError: a target is the end of no layer's path.
    """
    backbone = backbone_of(transformer)
    transformer.requires_grad_(False)
    arguments: dict[str, Any] = {  # peft annotates alpha as an integer, and takes any number
        "r": settings.rank,
        "lora_alpha": settings.rank if settings.alpha is None else settings.alpha,
        "target_modules": _target_paths(backbone, transformer, settings),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(init_lora_weights="gaussian", **arguments), transformer)
    for path in backbone.heads:
        transformer.get_submodule(path).requires_grad_(True)
    if settings.frozen_precision == "bf16":
        _round_frozen_layers(transformer)
    return transformer


def merge_lora(transformer: Transformer) -> Transformer:
    """The same model as a plain one: adapters are folded into the weights and their modules removed.

    A frozen weight in bf16 stays so, and the sum is rounded to it.
    """
    for path, module in list(transformer.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(transformer.get_submodule(parent), name, module.get_base_layer())
    vars(transformer).pop("peft_config", None)  # peft leaves it on every model that it was injected into
    return transformer


def has_lora(transformer: nn.Module) -> bool:
    """Whether LoRA is attached: injected, and not merged."""
    return any(isinstance(module, BaseTunerLayer) for module in transformer.modules())


def _target_paths(backbone: Backbone, transformer: nn.Module, settings: LoraSettings) -> list[str]:
    """Exact paths of the layers to adapt, never the heads."""
    ends = settings.targets or backbone.lora_targets
    for end in ends:
        if not replace(backbone, lora_targets=(end,)).lora_modules(transformer):
            raise ValueError(
                f"LoRA target {end!r} is the end of no layer's path in the {backbone.class_name}. Take linear or "
                f"convolution layers other than the heads; by default: {', '.join(backbone.lora_targets)}."
            )
    return replace(backbone, lora_targets=tuple(ends)).lora_modules(transformer)


def _round_frozen_layers(transformer: Any) -> None:
    """Linear, convolution and embedding layers that are not trained, in bf16.

    Norms, position tables and buffers are small and stay: autocast computes with them in fp32.
    """
    kept = set(transformer._keep_in_fp32_modules or ())
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) or kept & set(path.split(".")):
            continue
        if not any(weight.requires_grad for weight in module.parameters(recurse=False)):
            module.to(torch.bfloat16)
