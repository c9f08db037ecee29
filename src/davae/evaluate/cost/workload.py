"""Batches as shapes alone: what trainings and transformers are given, without data."""

from dataclasses import dataclass
from typing import Any

import torch

from davae.backbones.base import Shapes
from davae.backbones.registry import backbone_of
from davae.train.batch import Batch


def image_batch(count: int, height: int, width: int) -> Batch:
    """What an autoencoder's training is given, see `davae.train.feed.ImageSet`; images are on the meta device."""
    image = torch.empty(count, 3, height, width, dtype=torch.uint8, device="meta")
    return {"image": image, "position": torch.arange(count)}


@dataclass(frozen=True)
class Workload:
    """What a transformer is given.

    Args:
        latent: (K, h, w) of an image.
        conditioning: see `Shapes`.
    """

    latent: tuple[int, int, int]
    conditioning: Shapes

    @classmethod
    def of(cls, transformer: Any, height: int, width: int, max_length: int) -> "Workload":
        """Of a transformer of a known family, for a latent of this height and width and prompts of this length.

        Raises:
            ValueError: the family is not trained by this library.
        """
        backbone = backbone_of(transformer)
        channels = backbone.latent_channels(transformer.config)
        return cls((channels, height, width), backbone.shapes_of_conditions(transformer.config, max_length))

    def batch(self, count: int) -> Batch:
        """What its training is given, see `davae.train.latent_set.LatentSet`; positions alone have values."""
        with torch.device("meta"):
            return {
                "latent": torch.empty(count, *self.latent),
                "noise": torch.empty(count, *self.latent),
                "normal": torch.empty(count),
                "position": torch.arange(count, device="cpu"),
                **self.conditions(count),
            }

    def conditions(self, count: int) -> Batch:
        """The part of a batch that a prediction is conditioned on, on the meta device."""
        return {
            name: torch.empty((count, *shape), dtype=dtype, device="meta")
            for name, (shape, dtype) in self.conditioning.items()
        }
