"""The metrics that a run is judged by: another one is a file of its own and a line here."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from davae.evaluate.distances.frechet import FD_SOLIDS, FDD, FID, FRECHET, SFID
from davae.evaluate.distances.inception_score import IS, IS_SHUFFLED
from davae.evaluate.distances.kid import KID, KID_BIASED
from davae.evaluate.distances.mind import MIND
from davae.evaluate.distances.mmd import CMMD
from davae.evaluate.distances.precision_recall import PRECISION_RECALL
from davae.evaluate.distances.solids_accuracy import SOLIDS_ACCURACY, SOLIDS_FINENESS
from davae.evaluate.metric import FeatureMetric, PairedMetric, SetMetric
from davae.evaluate.similarity import PSNR, SSIM
from davae.evaluate.spectrum_slope import SPECTRUM_SLOPE
from davae.evaluate.swd import SWD

PAIRED: tuple[PairedMetric, ...] = (PSNR, SSIM)
"""Of reconstructions, in the order of the columns; those that need weights are added where these are at hand."""
GENERATED: tuple[SetMetric, ...] = (SWD, SPECTRUM_SLOPE)
"""Of generated sets, in the order of the tables."""
FEATURES: dict[str, FeatureMetric] = {
    metric.name: metric
    for metric in (
        *(FID, SFID, IS, IS_SHUFFLED, KID, KID_BIASED, PRECISION_RECALL, FDD, MIND, CMMD),
        *(FD_SOLIDS, SOLIDS_ACCURACY, SOLIDS_FINENESS),
    )
}
"""Of any images by the features of a network, in the order of the tables."""

VECTORS: dict[str, FeatureMetric] = {
    metric.name: replace(metric, space=FRECHET.space, feature=FRECHET.feature)
    for metric in (FRECHET, KID, KID_BIASED, PRECISION_RECALL, MIND)
}
"""Of features that files give, whatever network made them."""


def feature_metrics(names: Iterable[str], known: Mapping[str, FeatureMetric] = FEATURES) -> list[FeatureMetric]:
    """Those of the known ones that are named, each once.

    Raises:
        ValueError: one is unknown; the text names the nearest.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"Unknown metric '{name}'.{hint} Allowed: {', '.join(known)}.")
    return [known[name] for name in names]
