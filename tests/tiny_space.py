"""A feature space that costs nothing: a random projection of a small image."""

import numpy as np
import torch
from torch import nn

from davae.evaluate.spaces.resize import tensorflow_bilinear
from davae.evaluate.spaces.space import FeatureSpace

SIDE = 6


def tiny_space(name: str = "inception", **identity: str) -> FeatureSpace:
    """Features pool [16], logits [8] and spatial [12] under the names that the Inception's have."""
    torch.manual_seed(0)
    network = nn.ModuleDict(
        {
            feature: nn.Linear(3 * SIDE**2, length)
            for feature, length in (("pool", 16), ("logits", 8), ("spatial", 12))
        }
    ).requires_grad_(False)
    return FeatureSpace(
        name=name,
        identity={"extractor": "tiny", "weights": "0", "preprocessing": "tiny", **identity},
        network=network,
        lengths={feature: layer.out_features for feature, layer in network.items()},
        prepare=lambda image: (tensorflow_bilinear(image, SIDE, SIDE) - 128) / 128,
        compute=lambda inputs: {feature: layer(inputs.flatten(1)) for feature, layer in network.items()},
    )


def arrays(count: int, seed: int, side: int = 8) -> np.ndarray:
    """uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
