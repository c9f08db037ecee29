"""LightningDiT: conv patch embedder, [p*p, channels] head, native time (1 = data), class labels.

Its config covers queries and keys normed or not (`qk_norm`) and AdaLN with or without shift (`adaln_shift`). SiT
and REPA are another network and do not fit: they have a GELU MLP in place of SwiGLU, LayerNorm without weights in
place of RMSNorm, and no rotary positions.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from davae.backbones.base import Backbone, Shapes, config_of


def _velocity(transformer: nn.Module, noisy: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return transformer(noisy, time, conditions["label"]).sample


def _denoise_anything(transformer: nn.Module, noisy: Tensor, time: Tensor) -> Tensor:
    no_class = torch.full((len(noisy),), config_of(transformer)["num_classes"], device=noisy.device)
    return _velocity(transformer, noisy, time, {"label": no_class})


def _condition_shapes(config: Any, max_length: int) -> Shapes:
    return {"label": ((), torch.int64)}


LIGHTNINGDIT = Backbone(
    class_name="LightningDiT",
    convention="native velocity",
    condition="label",
    conditioned_on="class label: class_labels",
    embedders=("x_embedder.proj",),
    head="final_layer.linear",
    default_size="fixed",
    lora_targets=("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1"),
    pipelines=("LightningDiTPipeline",),
    takes_interval=True,
    velocity=_velocity,
    condition_shapes=_condition_shapes,
    blocks="blocks",
    denoise_anything=_denoise_anything,
)
