"""rFID in the pass that measures PSNR: features of rebuilt images and of their originals, summed up as they come."""

import numpy as np
import torch
from torch import Tensor

from davae.core.moments import FeatureMoments, frechet_distance
from davae.core.pixels import unit_to_uint8
from davae.evaluate.distances.frechet import labelled
from davae.evaluate.spaces import inception
from davae.evaluate.spaces.resize import Protocol
from davae.evaluate.spaces.space import FeatureSpace, Loading

PROTOCOL: Protocol = "pytorch-fid"
"""Of published rFID columns (LightningDiT, VA-VAE, DC-AE)."""
_ORIGINALS = ""


class ReconstructionFID:
    """Frechet distances of rows of rebuilt images to their originals.

    Args:
        space: of Inception features; only `pool` is taken.
        device: where it computes.
    """

    def __init__(self, space: FeatureSpace, device: torch.device) -> None:
        self._space, self._device = space, device
        self._moments: dict[str, FeatureMoments] = {}
        space.network.to(device)

    @classmethod
    def at_hand(cls, device: torch.device) -> "ReconstructionFID | None":
        """With the public weights; None where they are not on this machine."""
        space = inception.at_hand(Loading(protocol=PROTOCOL))
        return None if space is None else cls(space, device)

    @property
    def protocol(self) -> dict[str, str]:
        """What is measured, for a measurement's protocol."""
        return {
            **self._space.identity,
            "distance": "Frechet distance to the originals, float64, covariances 1 / (N - 1)",
        }

    def originals(self, images: Tensor, first: int) -> None:
        """Add originals [B, 3, H, W] in [0, 1], numbered from `first`; those that came before are passed over."""
        self.rebuilt(_ORIGINALS, images, first)

    @torch.inference_mode()
    def rebuilt(self, row: str, images: Tensor, first: int) -> None:
        """Add images of a row, as `originals`; they are rounded to 8 bits, as they would be kept."""
        moments = self._moments.setdefault(row, FeatureMoments(self._space.lengths["pool"]))
        if moments.count > first:
            return
        pixels = unit_to_uint8(images).permute(0, 2, 3, 1).numpy()
        inputs = torch.from_numpy(np.stack([self._space.prepare(image) for image in pixels])).to(self._device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            moments.update(self._space.compute(inputs)["pool"])

    def score(self, row: str) -> tuple[str, float] | None:
        """Column and distance of a row; None of fewer than two images, which have no covariance."""
        rebuilt, originals = self._moments[row], self._moments[_ORIGINALS]
        if rebuilt.count < 2:
            return None
        distance = frechet_distance(rebuilt.mean, rebuilt.cov, originals.mean, originals.cov)
        return labelled("rFID", rebuilt.count), distance
