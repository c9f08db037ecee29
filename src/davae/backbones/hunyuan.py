"""Hunyuan-DiT: conv patch embedder (p = 2), head with a learned sigma as PixArt's, v-prediction, rotary positions.

The config says `learn_sigma` in place of `out_channels`. The stock pipelines compute positions for autoencoders of
compression 8 only, so the upgrade comes with a pipeline of its own.
"""

from collections.abc import Mapping
from typing import Any

from davae.backbones.base import Backbone, rebuilt

_EIGHT = "it computes positions for autoencoders of compression 8 only"


def _rebuild(pipe: Any, components: Mapping[str, object]) -> Any:
    from davae.backbones.hunyuan_pipeline import HunyuanDiTPipelineDA  # loads text encoders' classes

    return rebuilt(pipe, components, HunyuanDiTPipelineDA)


def _predicted_channels(config: Any) -> int:
    return config.in_channels * (2 if config.learn_sigma else 1)


HUNYUAN = Backbone(
    class_name="HunyuanDiT2DModel",
    convention="v",
    condition="text",
    conditioned_on="CLIP and T5 text: prompt, negative_prompt (prompt_embeds and prompt_embeds_2 with their masks)",
    embedders=("pos_embed.proj",),
    head="proj_out",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    predicted_channels=_predicted_channels,
    takes_negative=True,
    refused={"HunyuanDiTPAGPipeline": _EIGHT, "HunyuanDiTControlNetPipeline": _EIGHT},
    rebuild=_rebuild,
)
