"""DiT: conv patch embedder (p = 2), head with a learned sigma as PixArt's, class labels.

The pipeline draws one size, `sample_size` latent positions, which the computed position table is made for.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from davae.backbones.base import Backbone, config_of, rebuilt
from davae.core.flow import per_sample

_BETAS, _STEPS = (1e-4, 0.02), 1000
"""The noise that every DiT was trained with."""


def _rebuild(pipe: Any, components: Mapping[str, object]) -> Any:
    upgraded = rebuilt(pipe, components)
    upgraded.labels = dict(pipe.labels)  # names of the classes: the pipeline keeps them outside its config
    return upgraded


def _denoise_anything(transformer: nn.Module, noisy: Tensor, time: Tensor) -> Any:
    """On the variance-preserving path: the same ratio of data to noise, brought to a variance of 1."""
    length = (time**2 + (1 - time) ** 2).sqrt()
    kept = (1 - torch.linspace(*_BETAS, _STEPS, device=noisy.device)).cumprod(0)  # of the data's variance, by step
    step = (kept - (time / length)[:, None] ** 2).abs().argmin(dim=1)
    no_class = torch.full((len(noisy),), config_of(transformer)["num_embeds_ada_norm"], device=noisy.device)
    return transformer(noisy / per_sample(length, noisy), timestep=step, class_labels=no_class)


DIT = Backbone(
    class_name="DiTTransformer2DModel",
    convention="noise",
    condition="label",
    conditioned_on="class label: class_labels",
    embedders=("pos_embed.proj",),
    head="proj_out_2",
    default_size="fixed",
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "ff.net.2", "norm1.linear"),
    rebuild=_rebuild,
    blocks="transformer_blocks",
    denoise_anything=_denoise_anything,
)
