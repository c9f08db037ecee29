"""Mask2Former as an instance detector: every object with its own mask, box and score, as mmdet reports them.

The post-processing that transformers brings is for label maps: it reduces masks to a fixed square, lets one object
erase another and rounds scores. Here each of the surest pairs of query and class is an object of its own.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerModel

from davae.core.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from davae.models.identity import state_hash
from davae.models.pretrained import load_network

_SHORTER, _LONGER, _MULTIPLE = 800, 1333, 32
_MEAN, _DEVIATION = (np.array(of, np.float32) for of in (IMAGENET_MEAN, IMAGENET_DEVIATION))
_CANDIDATES: Final = 100  # pairs of query and class that are looked at


class Mask2FormerNetwork(transformers.Mask2FormerForUniversalSegmentation):
    """The network without its training loss, which alone would need scipy."""

    def __init__(self, config: transformers.Mask2FormerConfig) -> None:
        super(transformers.Mask2FormerForUniversalSegmentation, self).__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, len(_labels(config)) + 1)
        self.post_init()


@dataclass(frozen=True)
class Segment:
    """An object in an image.

    Args:
        label: number of its class.
        score: in [0, 1].
        box: left, top, right and bottom edge of its pixels.
        mask: bool [H, W].
    """

    label: int
    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_]


class Mask2Former:
    """A frozen detector.

    Args:
        network: of transformers, for instances.
        name: where it comes from.
        lowest: score below which nothing is reported.
        device: to compute on.
        size: (shorter, longer) side to which images are brought, pixels: the shorter one, unless the longer one would
            get too long.
    """

    def __init__(
        self,
        network: Mask2FormerNetwork,
        name: str,
        lowest: float = 0.05,
        device: torch.device | None = None,
        size: tuple[int, int] = (_SHORTER, _LONGER),
    ) -> None:
        self.device = device or torch.device("cpu")
        nn.Module.to(network, self.device)
        self._network, self._name, self._lowest, self._size = network, name, lowest, size
        self.labels = _labels(network.config)

    @classmethod
    def from_pretrained(
        cls, source: str, allow_download: bool = False, device: torch.device | None = None, option: str = "--detector"
    ) -> Self:
        """Load a folder that transformers saved, or a model of the hub; see `load_network` for what is refused."""
        return cls(load_network(Mask2FormerNetwork, source, option, allow_download), source, device=device)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its detections depend on."""
        shorter, longer = self._size
        return {
            "model": self._name,
            "weights": state_hash(self._network),
            "precision": "float32",
            "image": f"shorter side to {shorter} px, longer at most {longer}, by Pillow's bilinear",
            "objects": f"surest {_CANDIDATES} of queries and classes, score times mean mask, above {self._lowest:g}",
        }

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> list[Segment]:
        """Objects of an RGB image, in no order that means anything."""
        pixels = self._pixels(image).to(self.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            output = self._network(pixel_values=pixels)
        classes, masks = output.class_queries_logits[0], output.masks_queries_logits[0]
        seen = (pixels.shape[-2], pixels.shape[-1])
        return segments(classes, masks, seen, (image.height, image.width), self._lowest)

    def _pixels(self, image: Image.Image) -> Tensor:
        shorter, longer = sorted(image.size)
        scale = min(self._size[0] / shorter, self._size[1] / longer)
        width, height = (math.ceil(round(side * scale) / _MULTIPLE) * _MULTIPLE for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
        return torch.from_numpy((pixels - _MEAN) / _DEVIATION).permute(2, 0, 1)[None]


def segments(
    classes: Tensor, masks: Tensor, seen: tuple[int, int], size: tuple[int, int], lowest: float = 0.0
) -> list[Segment]:
    """Objects from what the network says.

    Args:
        classes: logits [Q, K + 1], the last of which is "none".
        masks: logits [Q, h, w].
        seen: height and width of the image that the network saw.
        size: height and width of the image itself.
        lowest: score that an object has to exceed.
    """
    probabilities = classes.float().softmax(dim=-1)[:, :-1]
    surest = probabilities.flatten().topk(min(_CANDIDATES, probabilities.numel()))
    found = []
    for probability, pair in zip(surest.values.tolist(), surest.indices.tolist(), strict=True):
        if probability <= lowest:  # a mask only lowers it
            continue
        query, label = divmod(pair, probabilities.shape[1])
        logits = F.interpolate(masks[query][None, None].float(), size=seen, mode="bilinear", align_corners=False)
        inside = (logits > 0).float()
        score = probability * float((logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6))
        mask = F.interpolate(inside, size=size, mode="nearest")[0, 0].bool().cpu().numpy()
        if score > lowest and mask.any():
            found.append(Segment(label, float(np.float32(score)), _extent(mask), mask))
    return found


def _labels(config: Any) -> list[str]:
    """Names of the classes, in their order."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def _extent(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """Edges of the pixels of a mask, the right and the bottom one beyond its last pixel."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
