"""What a metric is: a function, and the words and units that its numbers are shown with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Better = Literal["higher", "lower"]
Scores = dict[str, dict[str, float]]
"""Set of images -> column of the table -> value."""


@dataclass(frozen=True)
class PairedMetric:
    """A number of an image and its original, as a column of a table.

    Args:
        name: of the column.
        measure: (images, originals), both [N, 3, H, W] in [0, 1] -> [N].
        protocol: what is measured, in words.
        better: "higher" or "lower".
        unit: "dB"; empty for a pure number.
    """

    name: str
    measure: Callable[[Tensor, Tensor], Tensor]
    protocol: str
    better: Better
    unit: str = ""

    @property
    def key(self) -> str:
        """Of its protocol in a measurement's."""
        return self.name.lower()


@dataclass(frozen=True)
class SetMetric:
    """Numbers of a set of images and a set of real ones, as a table.

    Args:
        group: title of the table.
        measure: (sets by name, real images, seed) -> `Scores`. Sets are uint8 [N, 3, S, S], real images
            [M, 3, S, S]; everything random is drawn from the seed.
        protocol: what is measured, in words.
        better: "higher" or "lower".
        unit: empty for a pure number.
    """

    group: str
    measure: Callable[[Mapping[str, Tensor], Tensor, int], Scores]
    protocol: str
    better: Better
    unit: str = ""
