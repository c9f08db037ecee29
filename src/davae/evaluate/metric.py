"""What a metric is: a function, and the words and units that its numbers are shown with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
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
        neutral: columns of which neither is better.
    """

    group: str
    measure: Callable[[Mapping[str, Tensor], Tensor, int], Scores]
    protocol: str
    better: Better
    unit: str = ""
    neutral: tuple[str, ...] = ()


class Rows(Protocol):
    """Feature vectors [N, F] of a set of images, one a row; an array, or files on a disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, F)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]:
        """Some of them, by a slice or an array of row numbers."""


@dataclass(frozen=True)
class Moments:
    """Mean [F] and covariance [F, F] (1 / (N - 1)) of feature vectors, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True)
class FeatureSet:
    """What a metric of features gets of a set of images.

    Args:
        count: images; 0 where a statistics file does not say.
        rows: the features, in the order of the images; None where there are none but moments.
        moments: None where the metric takes rows.
        asked: caption or class name of each image; None where nobody says.
    """

    count: int
    rows: Rows | None = None
    moments: Moments | None = None
    asked: Sequence[str] | None = None


@dataclass(frozen=True)
class Score:
    """A column of a metric with its value.

    Args:
        column: "Precision".
        value: the number.
        interval: within which 95 percent of its repetitions lie; None where there are none.
        details: what else is worth keeping, as JSON values.
        note: a sentence for who reads the number; empty where there is nothing to say.
        counted: whether it depends on how many images there are, so that its name has to say it.
    """

    column: str
    value: float
    interval: tuple[float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    counted: bool = False


@dataclass(frozen=True)
class FeatureMetric:
    """Numbers of a set of images, of its features and most often of those of a reference.

    Args:
        name: on the command line and in recipes.
        title: of its tables, and in messages.
        space: whose features, an entry of `davae.evaluate.spaces.catalogue.SPACES`.
        feature: which of them.
        takes: "moments" are enough, or all "rows" are needed.
        measure: (generated, reference, seed) -> scores; everything random is drawn from the seed.
        protocol: what is measured, in words.
        better: "higher" or "lower".
        needs: what images are compared with: a reference, nothing, or what they were asked to show.
        least: images a set needs at least.
    """

    name: str
    title: str
    space: str
    feature: str
    takes: Literal["moments", "rows"]
    measure: Callable[[FeatureSet, FeatureSet, int], list[Score]]
    protocol: str
    better: Better
    needs: Literal["reference", "nothing", "prompts"] = "reference"
    least: int = 2
