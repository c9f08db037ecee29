"""rFID in the pass that measures PSNR: features of rebuilt images and of their originals, summed up as they come."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from davae.core.moments import FeatureMoments, frechet_distance
from davae.core.pixels import unit_to_uint8
from davae.evaluate.distances.frechet import labelled
from davae.evaluate.metric import Score
from davae.evaluate.processes import ALONE, Processes
from davae.evaluate.spaces import inception
from davae.evaluate.spaces.resize import Protocol
from davae.evaluate.spaces.space import FeatureSpace, Loading

PROTOCOL: Protocol = "pytorch-fid"
"""Of published rFID columns (LightningDiT, VA-VAE, DC-AE)."""


class ReconstructionFID:
    """Frechet distances of rows of rebuilt images to their originals.

    Args:
        space: of Inception features; only `pool` is taken.
        device: where it computes.
    """

    def __init__(self, space: FeatureSpace, device: torch.device) -> None:
        self._space, self._device = space, device
        self._originals = FeatureMoments(space.lengths["pool"])
        self._seen: set[int] = set()
        self._rows: dict[str, FeatureMoments] = {}
        space.network.to(device)

    @classmethod
    def at_hand(cls, device: torch.device) -> "ReconstructionFID | None":
        """With the public weights; None where they are not on this machine."""
        space = inception.at_hand(Loading(protocol=PROTOCOL))
        return None if space is None else cls(space, device)

    def originals(self, images: Tensor, first: int) -> None:
        """Add originals [B, 3, H, W] in [0, 1], numbered from `first`; those that came before are passed over."""
        if first not in self._seen:
            self._seen.add(first)
            self._originals.update(self._features(images))

    def rebuilt(self, row: str, images: Tensor) -> None:
        """Add images of a row, as `originals`; they are rounded to 8 bits, as they would be kept."""
        self._rows.setdefault(row, self._none()).update(self._features(images))

    def beside(self) -> "ReconstructionFID":
        """For other rows beside the same originals."""
        other = ReconstructionFID(self._space, self._device)
        other._originals, other._seen = self._originals, self._seen
        return other

    def scores(self, rows: Iterable[str], processes: Processes = ALONE) -> dict[str, Score]:
        """Distances of rows, over the images of all processes; each calls this, the first has the numbers.

        Fewer than two images have none: they have no covariance.
        """
        originals = self._pooled(self._originals, processes)
        found: dict[str, Score] = {}
        for row in rows:
            rebuilt = self._pooled(self._rows.get(row, self._none()), processes)
            if rebuilt.count > 1 and processes.rank == 0:
                distance = frechet_distance(rebuilt.mean, rebuilt.cov, originals.mean, originals.cov)
                found[row] = Score(labelled("rFID", rebuilt.count), distance, details={"rfid": self._protocol})
        return found

    @property
    def _protocol(self) -> dict[str, str]:
        return {
            **self._space.identity,
            "distance": "Frechet distance to the originals, float64, covariances 1 / (N - 1)",
        }

    def _none(self) -> FeatureMoments:
        return FeatureMoments(self._space.lengths["pool"])

    def _pooled(self, moments: FeatureMoments, processes: Processes) -> FeatureMoments:
        if processes.count == 1:
            return moments
        pooled = self._none()
        for part in processes.gather([moments]):
            pooled.merge(part)
        return pooled

    @torch.inference_mode()
    def _features(self, images: Tensor) -> Tensor:
        """Pool features [B, 2048] of images [B, 3, H, W] in [0, 1], rounded to 8 bits."""
        pixels = unit_to_uint8(images).permute(0, 2, 3, 1).numpy()
        inputs = torch.from_numpy(np.stack([self._space.prepare(image) for image in pixels])).to(self._device)
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self._space.compute(inputs)["pool"]
