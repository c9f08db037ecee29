"""LightningDiT: conv patch embedder, [p*p, channels] head, native time (1 = data), class labels.

Its config covers queries and keys normed or not (`qk_norm`) and AdaLN with or without shift (`adaln_shift`). SiT
and REPA are another network and do not fit: they have a GELU MLP in place of SwiGLU, LayerNorm without weights in
place of RMSNorm, and no rotary positions.
"""

from typing import Any

from torch import Tensor

from davae.backbones.base import Backbone


def _velocity(transformer: Any, noisy: Tensor, time: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    return transformer(noisy, time, conditioning["label"]).sample


LIGHTNINGDIT = Backbone(
    class_name="LightningDiT",
    convention="native velocity",
    conditioning="class label: class_labels",
    embedders=("x_embedder.proj",),
    head="final_layer.linear",
    default_size="fixed",
    lora_targets=("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3", "adaLN_modulation.1"),
    velocity=_velocity,
)
