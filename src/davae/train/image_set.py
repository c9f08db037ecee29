"""Images of a source as a training set: crops and mirror images are drawn here, by the workers that load them."""

import torch

from davae.core.randomness import uniform
from davae.data.image_source import ImageSource
from davae.train.batch import Batch, TrainingSet
from davae.train.order import Order


class ImageSet(TrainingSet):
    """Images of a source for training: batches of "image" uint8 [B, 3, S, S] and "position".

    Args:
        source: where the images come from.
        size: S.
        seed: of order, crops and flips.
        flip: mirror half of the images.
        crop_from: side that images are brought to before a random window of S is cut out; None shows them whole.
    """

    def __init__(
        self, source: ImageSource, size: int, seed: int, flip: bool = True, crop_from: int | None = None
    ) -> None:
        self.source, self.size, self.seed, self.flip = source, size, seed, flip
        self.full_size = size if crop_from is None else crop_from
        if self.full_size < size:
            raise ValueError(
                f"Cannot crop {size} px from images of crop_from {crop_from} px; allowed {size} or more."
            )
        self.order = Order(len(source), seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, positions: list[int]) -> Batch:
        """See `TrainingSet`."""
        images = self.source.images(self.order.indices(positions), self.full_size)
        if self.full_size > self.size:
            room = self.full_size - self.size + 1
            tops, lefts = ((uniform(self.seed, axis, positions) * room).long() for axis in ("crop top", "crop left"))
            windows = zip(images, tops.tolist(), lefts.tolist(), strict=True)
            images = torch.stack([image[:, y : y + self.size, x : x + self.size] for image, y, x in windows])
        if self.flip:
            mirrored = uniform(self.seed, "flip", positions) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        return {"image": images, "position": torch.tensor(positions)}
