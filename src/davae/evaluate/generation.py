"""Generated sets against real images, and the control whose detail is noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from davae.core.layout import LatentLayout
from davae.core.randomness import Key, normal
from davae.data.image_list import ArrayImages
from davae.evaluate.feature_scores import score_features
from davae.evaluate.hardware import hardware
from davae.evaluate.metric import FeatureMetric
from davae.evaluate.metrics import GENERATED
from davae.evaluate.results import Measurement
from davae.evaluate.spaces.space import FeatureSpace
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction

FEATURES_GROUP = "Generation: features of networks"
UPSAMPLED, UPGRADED, CONTROL = "base upsampled", "upgraded", "random detail"
SETS = {
    UPSAMPLED: "the pretrained pair with the same seeds, conditions and steps, enlarged by bicubic interpolation",
    UPGRADED: "the upgraded pair",
    CONTROL: "the upgraded pair's base latents with N(0, 1) detail, same decoder",
}
"""Row of the table -> how the set is made."""
REAL = "other real images"
_REAL = "as many training images: what the numbers are where nothing was drawn"


def with_random_detail(layout: LatentLayout, latents: Tensor, ids: Sequence[Key], seed: int) -> Tensor:
    """The control: latents that keep their base and lose their detail to N(0, 1).

    Args:
        layout: of the latents.
        latents: [B, C + D, h, w]; the detail is in the transformer's units.
        ids: of the images; row i is a function of (seed, ids[i]) alone, whatever batch it is in.
        seed: of the detail.
    """
    base, detail = layout.split(latents)
    return layout.join(base, normal(seed, "random detail", ids, detail.shape[1:]).to(detail))


def with_detail_weight(layout: LatentLayout, latents: Tensor, weight: float) -> Tensor:
    """Latents [B, C + D, h, w] in the transformer's units whose detail is `weight` times what it was.

    At 0 every detail channel is at its mean over training images.
    """
    base, detail = layout.split(latents)
    return layout.join(base, weight * detail)


def measure_generation(
    sets: Mapping[str, Tensor], real: Tensor, sampling: Mapping[str, object], seed: int = 0
) -> list[Measurement]:
    """The metrics of `GENERATED` of sets of images.

    Args:
        sets: name (of `SETS`) -> uint8 images [N, 3, S, S].
        real: uint8 images [M, 3, S, S], never trained on.
        sampling: how the sets were drawn (steps, guidance, seeds), for the protocol.
        seed: of the metrics.
    """
    measurements = []
    for metric in GENERATED:
        for name, scores in metric.measure(sets, real, seed).items():
            protocol = {
                "generated": len(sets[name]),
                "real": len(real),
                "statistic": metric.protocol,
                "set": SETS[name],
                "drawn": dict(sampling),
                "metric_seed": seed,
                "hardware": hardware(),
            }
            for column, value in scores.items():
                better = "" if column in metric.neutral else metric.better
                measurements.append(Measurement(metric.group, name, column, value, metric.unit, better, protocol))
    return measurements


@dataclass(frozen=True)
class JudgedSet:
    """Images, and what they were asked to show.

    Args:
        images: uint8 [N, 3, S, S].
        asked: caption or class name of each; None where nobody says.
    """

    images: Tensor
    asked: Sequence[str] | None = None


def measure_features(
    sets: Mapping[str, JudgedSet],
    real: Tensor,
    sampling: Mapping[str, object],
    metrics: Sequence[FeatureMetric],
    open_space: Callable[[str], FeatureSpace],
    extraction: Extraction,
    seed: int = 0,
) -> list[Measurement]:
    """The same sets by features of networks.

    Args:
        sets: name (of `SETS`, or `REAL`) -> the images.
        real: uint8 images [M, 3, S, S], never trained on.
        sampling: how the sets were drawn (steps, guidance, seeds), for the protocol.
        metrics: of `davae.evaluate.metrics.FEATURES`.
        open_space: name -> space.
        extraction: how features come about.
        seed: of the metrics.

    Raises:
        ValueError: a metric cannot be taken of so few images.
    """
    reference, open_once = Reference("held-out images", _listed(real, "held-out images")), cache(open_space)
    made = {name: {"set": note, "drawn": dict(sampling)} for name, note in SETS.items()} | {REAL: {"set": _REAL}}
    return [
        replace(item, protocol={**item.protocol, **made[name]})
        for name, part in sets.items()
        for item in score_features(
            _listed(part.images, name),
            reference,
            metrics,
            open_once,
            extraction,
            name,
            FEATURES_GROUP,
            seed,
            asked=part.asked,
        )
    ]


def _listed(images: Tensor, name: str) -> ArrayImages:
    return ArrayImages(images.permute(0, 2, 3, 1).numpy(), name)
