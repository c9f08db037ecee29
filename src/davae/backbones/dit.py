"""DiT: conv patch embedder (p = 2), head with a learned sigma as PixArt's, class labels.

The pipeline draws one size, `sample_size` latent positions, which the computed position table is made for.
"""

from collections.abc import Mapping
from typing import Any

from davae.backbones.base import Backbone, rebuilt


def _rebuild(pipe: Any, components: Mapping[str, object]) -> Any:
    upgraded = rebuilt(pipe, components)
    upgraded.labels = dict(pipe.labels)  # names of the classes: the pipeline keeps them outside its config
    return upgraded


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
)
