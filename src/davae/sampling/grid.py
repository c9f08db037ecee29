"""The sizes that a pair can draw, from its configs alone: a wrong size is refused before any weight is loaded."""

from dataclasses import dataclass
from typing import Any

from davae.backbones.base import Backbone


@dataclass(frozen=True)
class Grid:
    """How an image lies on the tokens of a transformer.

    Args:
        compression: pixels a side that a latent position stands for.
        token_side: latent positions a side that a token stands for.
        default: side of the pair's images when nobody names one, pixels; None where every call must.
        most: tokens a side that the transformer has positions for; None where it computes them.
    """

    compression: int
    token_side: int
    default: int | None = None
    most: int | None = None

    @classmethod
    def of(cls, backbone: Backbone, transformer: Any, compression: int) -> "Grid":
        """The grid of a transformer with this config over an autoencoder with this compression."""
        default = transformer.sample_size * compression if backbone.default_size != "asked" else None
        return cls(compression, backbone.token_side(transformer), default, transformer.get("pos_embed_max_size"))

    @property
    def unit(self) -> int:
        """Pixels a side that a token stands for."""
        return self.compression * self.token_side

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the latent of an image.

        Raises:
            ValueError: the grid cannot take the size.
        """
        made_of = f"compression {self.compression} x patch {self.token_side}"
        for name, side in (("Height", height), ("Width", width)):
            if side < self.unit or side % self.unit:
                fitting = max(round(side / self.unit), 1) * self.unit
                raise ValueError(f"{name} must be a multiple of {self.unit} ({made_of}); got {side}. Use {fitting}.")
            if self.most is not None and side > self.most * self.unit:
                raise ValueError(
                    f"{name} is beyond the transformer's positions; got {side}, allowed is up to "
                    f"{self.most * self.unit} ({self.most} tokens x {self.unit} pixels)."
                )
        return height // self.compression, width // self.compression
