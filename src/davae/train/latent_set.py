"""Cached latents as a training set: everything random about a sample is drawn here, by the workers that load it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from davae.core.randomness import generator, normal, uniform
from davae.data.latent_cache import LatentCache
from davae.train.batch import Batch, TrainingSet
from davae.train.conditions import Conditions
from davae.train.order import BucketOrder


class LatentSet(TrainingSet):
    """Cached latents for training.

    Batches hold "latent" [B, C + D, h, w] as the transformer sees it, "noise" of the same shape, "normal" [B] (a
    standard normal, from which the time is made), "position" [B], and the tensors of the conditions. The detail
    channels are drawn from their posterior anew at every visit. A step sees one size.

    Args:
        cache: of the latents.
        conditions: what the samples are conditioned on.
        seed: of order, mirroring, posterior and noise.
        flips: use mirrored latents for half of the samples.
        batch_size: images a step, over all processes.

    Raises:
        ValueError: there are no mirrored latents in the cache.
    """

    def __init__(self, cache: LatentCache, conditions: Conditions, seed: int, flips: bool, batch_size: int) -> None:
        if flips and not cache.manifest.flips:
            raise ValueError(
                f"Training is to see mirrored latents, and the latent cache in {cache.folder} has none. Set flips to "
                f"false, or make the cache with cache.flips true."
            )
        self.cache, self.conditions, self.seed, self.flips = cache, conditions, seed, flips
        self.order = BucketOrder([count for _, _, count in cache.manifest.buckets], seed, batch_size)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitems__(self, positions: list[int]) -> Batch:
        """See `TrainingSet`."""
        indices = self.order.indices(positions)
        flipped = (uniform(self.seed, "flip", positions) < 0.5).tolist() if self.flips else None
        mean, logvar = self.cache.moments(indices, flipped)
        layout = self.cache.manifest.layout
        if layout.detail_channels:
            base, detail = layout.split(mean)
            noise = normal(self.seed, "posterior", positions, detail.shape[1:])
            mean = layout.join(base, detail + (0.5 * logvar).exp() * noise)
        return {
            "latent": self.cache.normalise(mean),
            "position": torch.tensor(positions),
            **draws(self.seed, positions, mean.shape[1:]),
            **self.conditions.batch(indices, positions),
        }


def draws(seed: int, positions: Sequence[int], shape: Sequence[int]) -> dict[str, Tensor]:
    """ "noise" [B, *shape] and "normal" [B] of positions: the same in any batch."""
    noise, normals = torch.empty(len(positions), *shape), torch.empty(len(positions))
    for row, position in enumerate(positions):
        source = generator(seed, "flow", position)
        normals[row] = torch.randn((), generator=source)
        torch.randn(tuple(shape), generator=source, out=noise[row])
    return {"noise": noise, "normal": normals}
