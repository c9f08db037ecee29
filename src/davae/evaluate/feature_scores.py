"""Scores of a set of images by the features of networks: what is needed is checked first, then computed once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.data.image_list import ImageList
from davae.evaluate.categories import Category
from davae.evaluate.distances.frechet import labelled, moments_of
from davae.evaluate.hardware import hardware
from davae.evaluate.metric import FeatureMetric, FeatureSet, Moments, Rows, Score
from davae.evaluate.results import INTERVAL, NOTE, Measurement
from davae.evaluate.spaces.space import FeatureSpace
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction, FeatureRows, extract

_NO_REFERENCE = FeatureSet(0)
_BLOCK = 4096  # rows


def score_features(
    images: ImageList,
    reference: Reference | None,
    metrics: Sequence[FeatureMetric],
    open_space: Callable[[str], FeatureSpace],
    extraction: Extraction,
    row: str,
    group: str = "Images",
    seed: int = 0,
    categories: Sequence[Category] = (),
    asked: Sequence[str] | None = None,
) -> list[Measurement]:
    """Measurements of the metrics, in their order. Of several processes all compute features, the first measures.

    Args:
        images: what is judged.
        reference: what they are compared with; None where no metric needs one.
        metrics: of `davae.evaluate.metrics.FEATURES`.
        open_space: name -> space.
        extraction: how features come about.
        row: name of the images in tables.
        group: title of the table.
        seed: of everything random.
        categories: rows of the table in place of `row`, each of some of the images and of the reference's; features
            are computed once.
        asked: caption or class name of each image, for metrics that look whether it shows them.

    Raises:
        ValueError: a metric cannot be taken of these images, or not against this reference; nothing was computed.
    """
    check(images, reference, metrics, asked)
    _check_categories(categories, reference, metrics)
    spaces = {name: open_space(name) for name in dict.fromkeys(metric.space for metric in metrics)}
    stored = {} if categories else _stored(reference, metrics, spaces)
    generated: dict[str, Mapping[str, FeatureRows]] = {}
    others: dict[str, Mapping[str, FeatureRows]] = {}
    for name, space in spaces.items():
        members = [metric for metric in metrics if metric.space == name]
        generated[name] = extract(images, space, _features(members), extraction)
        others[name] = _extract_reference(reference, space, members, extraction, not categories)
        space.network.to("cpu")
    if extraction.processes.rank:
        return []
    gathered = _Gathered(images, reference, spaces, generated, others, stored, extraction, seed, asked)
    measurements = _counts(group, categories)
    for metric in metrics:
        extraction.observer.say(f"measuring {metric.title}")
        if categories:
            measurements += [item for part in categories for item in gathered.of_category(metric, part, group)]
        else:
            measurements += gathered.of_all(metric, group, row)
    return measurements


@dataclass(frozen=True)
class _Gathered:
    """Everything that a number is made of."""

    images: ImageList
    reference: Reference | None
    spaces: Mapping[str, FeatureSpace]
    generated: Mapping[str, Mapping[str, FeatureRows]]
    others: Mapping[str, Mapping[str, FeatureRows]]
    stored: Mapping[str, FeatureSet]
    extraction: Extraction
    seed: int
    asked: Sequence[str] | None
    moments: dict[int, Moments] = field(default_factory=dict)
    """Of all rows, by who they are."""

    def of_all(self, metric: FeatureMetric, group: str, row: str) -> list[Measurement]:
        """Of all images against all of the reference."""
        ours = _feature_set(metric, self.generated[metric.space][metric.feature], self.moments)
        ours = replace(ours, asked=self.asked)
        if metric.needs != "reference":
            theirs = _NO_REFERENCE
        elif metric.name in self.stored:
            theirs = self.stored[metric.name]
        else:
            theirs = _feature_set(metric, self.others[metric.space][metric.feature], self.moments)
        protocol, scores = self._protocol(metric, theirs), metric.measure(ours, theirs, self.seed)
        return [measurement(group, row, metric, score, ours.count, protocol) for score in scores]

    def of_category(self, metric: FeatureMetric, part: Category, group: str) -> list[Measurement]:
        """Of the images of a category against those of the reference; the row says how many these are."""
        ours = _feature_set(metric, _some(self.generated[metric.space][metric.feature], part.drawn), {})
        if self.asked is not None:
            ours = replace(ours, asked=[self.asked[number] for number in part.drawn])
        theirs = _feature_set(metric, _some(self.others[metric.space][metric.feature], part.real), {})
        protocol = self._protocol(metric, theirs) | {
            "category": part.name,
            "drawn": ours.count,
            "real": theirs.count,
        }
        scores = [replace(score, counted=False) for score in metric.measure(ours, theirs, self.seed)]
        return [measurement(group, part.name, metric, score, ours.count, protocol) for score in scores]

    def _protocol(self, metric: FeatureMetric, theirs: FeatureSet) -> dict[str, Any]:
        space = self.spaces[metric.space]
        return _protocol(metric, space, self.images, self.reference, theirs.count, self.extraction, self.seed)


def check(
    images: ImageList,
    reference: Reference | None,
    metrics: Sequence[FeatureMetric],
    asked: Sequence[str] | None = None,
) -> None:
    """Refuse what cannot be measured, before anything is computed.

    Raises:
        ValueError: the text names the metric, what it got and what it needs.
    """
    for metric in metrics:
        if len(images) < metric.least:
            raise ValueError(
                f"{metric.title} needs at least {metric.least} images; got {len(images)} in {images.where}. "
                f"Give more, or leave '{metric.name}' out of --metrics."
            )
        if metric.needs == "prompts" and asked is None:
            raise ValueError(
                f"{metric.title} needs what the images were asked to show; got no captions for {images.where}. Give "
                f"--prompts FILE, or leave '{metric.name}' out of --metrics."
            )
        if metric.needs != "reference":
            continue
        if reference is None:
            raise ValueError(
                f"{metric.title} compares images with others; got no reference. Give --reference, or leave "
                f"'{metric.name}' out of --metrics."
            )
        if _is_stored(reference, metric):
            continue
        if reference.images is None:
            what = "every image's features" if metric.takes == "rows" else f"statistics of {metric.space} features"
            raise ValueError(
                f"{metric.title} needs {what} or the images of the reference; {reference.where} has neither. "
                f"Give the images, or make a file with 'davae statistics FOLDER --metrics {metric.name}'."
            )
        if len(reference.images) < metric.least:
            raise ValueError(
                f"{metric.title} needs at least {metric.least} images of the reference; got {len(reference.images)} "
                f"in {reference.where}. Give more, or leave '{metric.name}' out of --metrics."
            )


def _check_categories(
    categories: Sequence[Category], reference: Reference | None, metrics: Sequence[FeatureMetric]
) -> None:
    """Refuse categories that a metric cannot be taken of."""
    if not categories:
        return
    for metric in metrics:
        if metric.needs != "reference":
            raise ValueError(
                f"{metric.title} compares with nothing, so that it has no categories. Leave '{metric.name}' out of "
                f"--metrics, or measure it without --categories."
            )
        if reference is None or reference.images is None:
            raise ValueError(
                "Numbers by category need the images of the reference; got statistics alone. Give the folder."
            )
        for part in categories:
            if min(len(part.drawn), len(part.real)) < metric.least:
                raise ValueError(
                    f"{metric.title} needs at least {metric.least} images of a category; got {len(part.drawn)} drawn "
                    f"and {len(part.real)} real ones of {part.name}. Draw more, or measure without --categories."
                )


def _counts(group: str, categories: Sequence[Category]) -> list[Measurement]:
    """How many images each category is of."""
    return [
        Measurement(group, part.name, column, len(numbers))
        for part in categories
        for column, numbers in (("images", part.drawn), ("of the reference", part.real))
    ]


def _some(rows: FeatureRows, numbers: NDArray[np.intp]) -> Rows:
    """Some of the rows, in memory; all of them where they lie."""
    return rows if len(numbers) == len(rows) else rows[numbers]


def _is_stored(reference: Reference, metric: FeatureMetric) -> bool:
    """Whether the reference's statistics are enough."""
    file = reference.statistics
    return metric.needs == "reference" and file is not None and file.has(metric.space, metric.feature, metric.takes)


def _stored(
    reference: Reference | None, metrics: Sequence[FeatureMetric], spaces: Mapping[str, FeatureSpace]
) -> dict[str, FeatureSet]:
    """What the reference's statistics give, by metric; refused before anything is computed where it does not fit."""
    found: dict[str, FeatureSet] = {}
    for metric in metrics:
        if reference is None or reference.statistics is None or not _is_stored(reference, metric):
            continue
        file, space = reference.statistics, spaces[metric.space]
        file.require(space)
        if metric.takes == "rows":
            rows = file.rows(metric.space, metric.feature)
            length, found[metric.name] = rows.shape[-1], FeatureSet(len(rows), rows)
            _refuse_non_finite(rows, reference.where)
        else:
            moments = file.moments(metric.space, metric.feature)
            length, found[metric.name] = len(moments.mean), FeatureSet(file.count, None, moments)
        if length != space.lengths[metric.feature]:
            raise ValueError(
                f"{reference.where} does not compare with these features: got {length} numbers a vector, here they "
                f"are {space.lengths[metric.feature]}. Make it of the reference images with 'davae statistics'."
            )
    return found


def _features(metrics: Sequence[FeatureMetric]) -> list[str]:
    return list(dict.fromkeys(metric.feature for metric in metrics))


def _extract_reference(
    reference: Reference | None,
    space: FeatureSpace,
    metrics: Sequence[FeatureMetric],
    extraction: Extraction,
    is_whole: bool,
) -> Mapping[str, FeatureRows]:
    """Features of the reference's images; `is_whole` leaves out those that its statistics are enough for."""
    if reference is None or reference.images is None:
        return {}
    wanted = [
        metric
        for metric in metrics
        if metric.needs == "reference" and not (is_whole and _is_stored(reference, metric))
    ]
    return extract(reference.images, space, _features(wanted), extraction) if wanted else {}


def _feature_set(metric: FeatureMetric, rows: Rows, moments: dict[int, Moments]) -> FeatureSet:
    if metric.takes == "rows":
        return FeatureSet(len(rows), rows)
    if id(rows) not in moments:
        moments[id(rows)] = moments_of(rows)
    return FeatureSet(len(rows), None, moments[id(rows)])


def _refuse_non_finite(rows: Rows, where: str) -> None:
    if (row := first_not_finite(rows)) is not None:
        raise ValueError(
            f"Row {row} of the features in {where} is not finite. Write it again with 'davae statistics'."
        )


def first_not_finite(rows: Rows) -> int | None:
    """Number of the first vector that holds something else than numbers; None where all are finite."""
    for start in range(0, len(rows), _BLOCK):
        finite = np.isfinite(rows[start : start + _BLOCK]).all(axis=1)
        if not finite.all():
            return start + int(finite.argmin())
    return None


def _protocol(
    metric: FeatureMetric,
    space: FeatureSpace,
    images: ImageList,
    reference: Reference | None,
    compared: int,
    extraction: Extraction,
    seed: int,
) -> dict[str, Any]:
    """Everything needed to measure it again."""
    protocol: dict[str, Any] = {
        "metric": metric.protocol,
        "feature": metric.feature,
        **space.identity,
        **space.about,
        "images": describe(images),
        "precision": "network float32 without TF32, sums float64",
        "batch_size": extraction.batch_size,
        "processes": extraction.processes.count,
        "device": str(extraction.device),
        "seed": seed,
        "hardware": hardware(),
    }
    if metric.needs == "reference" and reference is not None:
        protocol["reference"] = _described(reference, metric, compared)
    return protocol


def describe(images: ImageList) -> dict[str, Any]:
    """What a protocol says of a set of images."""
    sizes = sorted({f"{width} x {height} px" for height, width in images.sizes})
    shown = sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, {sizes[0]} among them; each resized by itself"
    about = {"path": images.where, "count": len(images), "size": shown, "left_out": len(images.skipped)}
    return about if images.enlarged is None else {**about, "enlarged": images.enlarged}


def _described(reference: Reference, metric: FeatureMetric, compared: int) -> dict[str, Any]:
    file = reference.statistics
    if file is not None and _is_stored(reference, metric):
        unsaid = [key for key in ("weights",) if key not in file.identities.get(metric.space, {})]
        count = compared or "not said by the file"
        return {"path": reference.where, "count": count, "kind": file.kind, "not_said": unsaid}
    assert reference.images is not None
    return describe(reference.images)


def measurement(
    group: str, row: str, metric: FeatureMetric, score: Score, count: int, protocol: Mapping[str, Any]
) -> Measurement:
    """A score as a number of a table; `count` images are what it is of."""
    column = labelled(score.column, count) if score.counted else score.column
    extra: dict[str, Any] = dict(score.details)
    if score.interval is not None:
        extra[INTERVAL] = list(score.interval)
    if score.note:
        extra[NOTE] = score.note
    return Measurement(group, row, column, score.value, "", metric.better, {**protocol, **extra})
