"""Scores of a set of images by the features of networks: what is needed is checked first, then computed once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from davae.data.image_list import ImageList
from davae.evaluate.distances.frechet import moments_of
from davae.evaluate.hardware import hardware
from davae.evaluate.metric import FeatureMetric, FeatureSet, Moments, Score
from davae.evaluate.results import Measurement
from davae.evaluate.spaces.space import FeatureSpace
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction, FeatureRows, extract

NOTE = "note"
"""Key of a protocol under which a measurement has a sentence for its reader."""
INTERVAL = "interval_95"
"""Key of a protocol under which a measurement has its interval, a pair of numbers."""
_NO_REFERENCE = FeatureSet(0)


def score_features(
    images: ImageList,
    reference: Reference | None,
    metrics: Sequence[FeatureMetric],
    open_space: Callable[[str], FeatureSpace],
    extraction: Extraction,
    row: str,
    group: str = "Images",
    seed: int = 0,
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

    Raises:
        ValueError: a metric cannot be taken of these images, or not against this reference; nothing was computed.
    """
    check(images, reference, metrics)
    spaces = {name: open_space(name) for name in dict.fromkeys(metric.space for metric in metrics)}
    if reference is not None and reference.statistics is not None:
        for space in spaces.values():
            if any(_is_stored(reference, metric) for metric in metrics if metric.space == space.name):
                reference.statistics.require(space)
    generated: dict[str, Mapping[str, FeatureRows]] = {}
    others: dict[str, Mapping[str, FeatureRows]] = {}
    for name, space in spaces.items():
        members = [metric for metric in metrics if metric.space == name]
        generated[name] = extract(images, space, _features(members), extraction)
        others[name] = _extract_reference(reference, space, members, extraction)
        space.network.to("cpu")
    if extraction.processes.rank:
        return []
    measurements = []
    moments: dict[int, Moments] = {}  # of rows, by who they are
    for metric in metrics:
        extraction.observer.say(f"measuring {metric.title}")
        ours = _feature_set(metric, generated[metric.space][metric.feature], moments)
        theirs = _reference_set(metric, reference, others[metric.space], moments)
        scores = metric.measure(ours, theirs, seed)
        protocol = _protocol(metric, spaces[metric.space], images, reference, theirs.count, extraction, seed)
        measurements += [_measurement(group, row, metric, score, protocol) for score in scores]
    return measurements


def check(images: ImageList, reference: Reference | None, metrics: Sequence[FeatureMetric]) -> None:
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


def _is_stored(reference: Reference, metric: FeatureMetric) -> bool:
    """Whether the reference's statistics are enough."""
    file = reference.statistics
    return metric.needs == "reference" and file is not None and file.has(metric.space, metric.feature, metric.takes)


def _features(metrics: Sequence[FeatureMetric]) -> list[str]:
    return list(dict.fromkeys(metric.feature for metric in metrics))


def _extract_reference(
    reference: Reference | None, space: FeatureSpace, metrics: Sequence[FeatureMetric], extraction: Extraction
) -> Mapping[str, FeatureRows]:
    if reference is None or reference.images is None:
        return {}
    wanted = [metric for metric in metrics if metric.needs == "reference" and not _is_stored(reference, metric)]
    return extract(reference.images, space, _features(wanted), extraction) if wanted else {}


def _feature_set(metric: FeatureMetric, rows: FeatureRows, moments: dict[int, Moments]) -> FeatureSet:
    if metric.takes == "rows":
        return FeatureSet(len(rows), rows)
    if id(rows) not in moments:
        moments[id(rows)] = moments_of(rows)
    return FeatureSet(len(rows), None, moments[id(rows)])


def _reference_set(
    metric: FeatureMetric,
    reference: Reference | None,
    extracted: Mapping[str, FeatureRows],
    moments: dict[int, Moments],
) -> FeatureSet:
    if reference is None or metric.needs != "reference":
        return _NO_REFERENCE
    if not _is_stored(reference, metric):
        return _feature_set(metric, extracted[metric.feature], moments)
    file = reference.statistics
    assert file is not None
    if metric.takes == "rows":
        rows = file.rows(metric.space, metric.feature)
        _refuse_non_finite(rows, reference.where)
        return FeatureSet(len(rows), rows)
    return FeatureSet(file.count, None, file.moments(metric.space, metric.feature))


def _refuse_non_finite(rows: Any, where: str) -> None:
    if not all(np.isfinite(rows[start : start + 4096]).all() for start in range(0, len(rows), 4096)):
        raise ValueError(f"Features in {where} are not finite. Write the file again with 'davae statistics'.")


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
    return {"path": images.where, "count": len(images), "size": shown, "left_out": len(images.skipped)}


def _described(reference: Reference, metric: FeatureMetric, compared: int) -> dict[str, Any]:
    file = reference.statistics
    if file is not None and _is_stored(reference, metric):
        unsaid = [key for key in ("weights",) if key not in file.identities.get(metric.space, {})]
        count = compared or "not said by the file"
        return {"path": reference.where, "count": count, "kind": file.kind, "not_said": unsaid}
    assert reference.images is not None
    return describe(reference.images)


def _measurement(
    group: str, row: str, metric: FeatureMetric, score: Score, protocol: Mapping[str, Any]
) -> Measurement:
    extra: dict[str, Any] = dict(score.details)
    if score.interval is not None:
        extra[INTERVAL] = list(score.interval)
    if score.note:
        extra[NOTE] = score.note
    return Measurement(group, row, score.column, score.value, "", metric.better, {**protocol, **extra})
