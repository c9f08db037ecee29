"""What a feature space is: from an 8-bit image to named vectors, and the identity of what does it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from davae.evaluate.spaces.resize import Pixels, Protocol

Identity = dict[str, str]
"""What features depend on, as words: extractor, weights, preprocessing, quantisation. Equal ones compare."""
QUANTISATION = "8-bit images"


@dataclass(frozen=True)
class Loading:
    """How a space is opened.

    Args:
        weights: a path, or a name of the hub for spaces that come from there; None takes the public weights.
        protocol: named preprocessing; of the Inception family alone, the other spaces have one of their own.
        allow_download: whether weights that are not on this machine may be fetched.
        say: is told of a download before it starts.
    """

    weights: str | None = None
    protocol: Protocol = "adm"
    allow_download: bool = False
    say: Callable[[str], None] | None = None


@dataclass(frozen=True)
class FeatureSpace:
    """A network with everything that its features depend on.

    Args:
        name: of the space.
        identity: what its features depend on.
        network: frozen, float32, in eval mode.
        lengths: feature -> numbers a vector.
        prepare: an image, uint8 [H, W, 3] -> the network's input, float32 [3, S, S]; called by several threads.
        compute: inputs [B, 3, S, S] on the network's device -> vectors [B, F] by feature.
        about: what else is known of it, for people.
    """

    name: str
    identity: Identity
    network: nn.Module
    lengths: Mapping[str, int]
    prepare: Callable[[NDArray[np.uint8]], Pixels]
    compute: Callable[[Tensor], Mapping[str, Tensor]]
    about: Mapping[str, str] = field(default_factory=dict)
