"""What a judge of `solids` learns from: scenes and what their captions say, some of them with less than their pixels.

To tell what was enlarged from what was rendered, features have to hold what only full resolution has: fine lines and
sharp outlines.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.pixels import enlarge
from davae.core.randomness import uniform
from davae.data.image_source import ImageSource
from davae.models.solids_judge import COARSEST
from davae.train.batch import Batch, TrainingSet
from davae.train.order import Order

_STEP = 8  # pixels between the sides that images are reduced to: as few sizes as resizing in batches asks for


class JudgeSet(TrainingSet):
    """Batches of "image" uint8 [B, 3, S, S], "fineness" [B], the number of each attribute's word [B], and "position".

    Args:
        source: of the scenes.
        attributes: attribute -> number of its word for each scene of the source, int64 [N].
        size: S.
        enlarged_share: share of the images that are reduced to between `COARSEST` and all of S, and enlarged again.
        seed: of order and reduction.
    """

    def __init__(
        self, source: ImageSource, attributes: Mapping[str, Tensor], size: int, enlarged_share: float, seed: int
    ) -> None:
        self.source, self.attributes, self.size = source, attributes, size
        self.enlarged_share, self.seed = enlarged_share, seed
        self.order = Order(len(source), seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, positions: list[int]) -> Batch:
        """See `TrainingSet`."""
        indices = self.order.indices(positions)
        fineness = self._fineness(positions)
        return {
            "image": self._shown(self.source.images(indices, self.size), fineness, positions),
            "fineness": fineness,
            "position": torch.tensor(positions),
            **{name: numbers[indices] for name, numbers in self.attributes.items()},
        }

    def _fineness(self, positions: Sequence[int]) -> Tensor:
        """Share of its pixels, a side, that each image is shown with, [B]; 1 is as rendered."""
        is_enlarged = uniform(self.seed, "enlarged", positions) < self.enlarged_share
        share = COARSEST + (1 - COARSEST) * uniform(self.seed, "reduced to", positions)
        return torch.where(is_enlarged, (share * self.size / _STEP).floor() * _STEP / self.size, 1.0)

    def _shown(self, images: Tensor, fineness: Tensor, positions: Sequence[int]) -> Tensor:
        """The images, reduced by one of two filters, enlarged again, and rounded as files are."""
        has_antialias, shown = uniform(self.seed, "antialias", positions) < 0.5, images.clone()
        for share in fineness[fineness < 1].unique().tolist():
            side = round(share * self.size)
            for antialias in (True, False):
                rows = (fineness == share) & (has_antialias == antialias)
                if rows.any():
                    small = F.interpolate(images[rows].float(), (side, side), mode="bicubic", antialias=antialias)
                    shown[rows] = enlarge(small, self.size).clamp(0, 255).round().to(torch.uint8)
        return shown
