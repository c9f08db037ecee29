"""The metrics that a run is judged by: another one is a file of its own and a line here."""

from collections.abc import Iterable
from difflib import get_close_matches

from davae.evaluate.distances.frechet import FDD, FID, SFID
from davae.evaluate.distances.inception_score import IS, IS_SHUFFLED
from davae.evaluate.distances.kid import KID, KID_BIASED
from davae.evaluate.distances.mind import MIND
from davae.evaluate.distances.mmd import CMMD
from davae.evaluate.distances.precision_recall import PRECISION_RECALL
from davae.evaluate.metric import FeatureMetric, PairedMetric, SetMetric
from davae.evaluate.similarity import PSNR, SSIM
from davae.evaluate.swd import SWD

PAIRED: tuple[PairedMetric, ...] = (PSNR, SSIM)
"""Of reconstructions, in the order of the columns; those that need weights are added where these are at hand."""
GENERATED: tuple[SetMetric, ...] = (SWD,)
"""Of generated sets, in the order of the tables."""
FEATURES: dict[str, FeatureMetric] = {
    metric.name: metric for metric in (FID, SFID, IS, IS_SHUFFLED, KID, KID_BIASED, PRECISION_RECALL, FDD, MIND, CMMD)
}
"""Of any images by the features of a network, in the order of the tables."""


def feature_metrics(names: Iterable[str]) -> list[FeatureMetric]:
    """Those of `FEATURES` that are named, each once.

    Raises:
        ValueError: one is unknown; the text names the nearest.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in FEATURES:
            close = get_close_matches(name, FEATURES, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"Unknown metric '{name}'.{hint} Allowed: {', '.join(FEATURES)}.")
    return [FEATURES[name] for name in names]
