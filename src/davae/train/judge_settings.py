"""Settings of the training of a judge of `solids`."""

from dataclasses import dataclass

from davae.core.config import Amount, Share, Side
from davae.train.settings import LoopConfig


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(LoopConfig):
    """Training of a `SolidsJudge` on rendered scenes and their captions."""

    image_size: Side = 128
    """Side of the images that it looks at, pixels."""
    enlarged_share: Share = 0.5
    """Share of the images that are shown enlarged from fewer pixels, half of them a side at the least."""
    names_enlarged: bool = False
    """Whether it learns to name what enlarged images show too, and so becomes blind to what they lack."""
    fineness_weight: Amount = 10.0
    """Weight of the squared error in how fine an image is, beside the cross entropies of what it shows."""
