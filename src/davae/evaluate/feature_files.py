"""Features that files give, of any network: compared by what needs no network of ours.

| file | its features | what made them, where it says so |
|---|---|---|
| `.npy` | [N, F] | |
| `.npz` | `features`, or its only array but `identity` | `identity`, a text |
| `.safetensors` | `features`, or its only tensor | its metadata |
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.core.tensor_files import load_tensors, metadata_of
from davae.data.errors import DataError
from davae.data.image_list import ARRAY
from davae.data.npz import array_names, read_array
from davae.evaluate.distances.frechet import moments_of
from davae.evaluate.feature_scores import first_not_finite, measurement
from davae.evaluate.metric import FeatureMetric, FeatureSet
from davae.evaluate.results import NOTE, Measurement

UNSTATED = "unstated"
_FEATURES, _IDENTITY = "features", "identity"


@dataclass(frozen=True)
class FeatureFile:
    """Vectors of a set, and what made them.

    Args:
        where: path of the file.
        rows: [N, F], finite.
        identity: as the file states it, or `UNSTATED`.
    """

    where: str
    rows: NDArray[Any]
    identity: str


def is_feature_file(path: str | Path) -> bool:
    """Whether a path is that of features: a file of vectors, and none of images or statistics."""
    place = Path(path)
    if place.suffix == ".npz" and place.is_file():
        names = set(array_names(place)) - {_IDENTITY}
        return _FEATURES in names or (len(names) == 1 and (names != {ARRAY} or read_array(place, ARRAY).ndim == 2))
    return place.suffix in (".npy", ".safetensors")


def open_features(path: str | Path) -> FeatureFile:
    """The vectors of a file; of an npy and an npz they stay on the disk.

    Raises:
        DataError: they are no [N, F] numbers, or not finite; the text names the first row that is not.
        DamagedFileError: a safetensors file is cut off.
        FileNotFoundError: there is none.
    """
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"There is no file of features {place}. Correct the path.")
    rows, identity = {".npy": _npy, ".safetensors": _safetensors}.get(place.suffix, _npz)(place)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "fiu":
        raise DataError(
            f"cannot compare the features of {place}: got {rows.dtype} {list(rows.shape)}; allowed are numbers "
            "[N, F]; write a vector a row"
        )
    if (row := first_not_finite(rows)) is not None:
        raise DataError(
            f"cannot compare the features of {place}: row {row} is not finite; allowed are finite numbers; make them "
            "again, or leave that image out"
        )
    return FeatureFile(str(path), rows, identity or UNSTATED)


def compare_features(
    ours: FeatureFile, theirs: FeatureFile, metrics: Sequence[FeatureMetric], row: str, seed: int = 0
) -> list[Measurement]:
    """Measurements of `davae.evaluate.metrics.VECTORS`, in their order.

    Args:
        ours: of what is judged.
        theirs: of what it is compared with.
        metrics: what is measured.
        row: name of what is judged, in tables.
        seed: of everything random.

    Raises:
        ValueError: the two are of other networks, as far as they say, or too small.
    """
    _check(ours, theirs, metrics)
    files = (ours, theirs)
    moments = (
        [moments_of(file.rows) for file in files] if any(m.takes == "moments" for m in metrics) else [None, None]
    )
    protocol = {
        "extractor": ours.identity,
        "images": {"path": ours.where, "count": len(ours.rows)},
        "reference": {"path": theirs.where, "count": len(theirs.rows), "extractor": theirs.identity},
        "length": ours.rows.shape[1],
        "seed": seed,
    }
    note = _trust(files)
    found = []
    for metric in metrics:
        sets = [FeatureSet(len(f.rows), f.rows, m) for f, m in zip(files, moments, strict=True)]
        for score in metric.measure(sets[0], sets[1], seed):
            item = measurement(
                "Features", row, metric, score, len(ours.rows), {"metric": metric.protocol, **protocol}
            )
            notes = " ".join(filter(None, [item.protocol.get(NOTE), note]))
            found.append(replace(item, protocol={**item.protocol, **({NOTE: notes} if notes else {})}))
    return found


def _check(ours: FeatureFile, theirs: FeatureFile, metrics: Sequence[FeatureMetric]) -> None:
    if ours.rows.shape[1] != theirs.rows.shape[1]:
        raise ValueError(
            f"Features compare with others of their network; got {ours.rows.shape[1]} numbers a vector in "
            f"{ours.where} and {theirs.rows.shape[1]} in {theirs.where}. Take both from one network."
        )
    if UNSTATED not in (ours.identity, theirs.identity) and ours.identity != theirs.identity:
        raise ValueError(
            f"{theirs.where} does not compare with these features: it says '{theirs.identity}', {ours.where} says "
            f"'{ours.identity}'. Take both from one network."
        )
    for metric in metrics:
        for file in (ours, theirs):
            if len(file.rows) < metric.least:
                raise ValueError(
                    f"{metric.title} needs at least {metric.least} vectors; got {len(file.rows)} in {file.where}. "
                    f"Give more, or leave '{metric.name}' out of --metrics."
                )


def _trust(files: Sequence[FeatureFile]) -> str:
    """What of the numbers rests on who gave the files."""
    silent = [file.where for file in files if file.identity == UNSTATED]
    if not silent:
        return ""
    verb = "do not say" if len(silent) > 1 else "does not say"
    return (
        f"{' and '.join(dict.fromkeys(silent))} {verb} what made the features: that they compare is taken on trust."
    )


def _npy(path: Path) -> tuple[NDArray[Any], str]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False), ""
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"cannot read {path}: got {error}; allowed is a whole array of numbers; fetch or write the file again"
        ) from error


def _npz(path: Path) -> tuple[NDArray[Any], str]:
    names = set(array_names(path))
    identity = str(read_array(path, _IDENTITY)) if _IDENTITY in names else ""
    name = _name(path, names - {_IDENTITY})
    return read_array(path, name), identity


def _safetensors(path: Path) -> tuple[NDArray[Any], str]:
    tensors = load_tensors(path)
    said = {key: value for key, value in metadata_of(path).items() if key != "format"}
    identity = "; ".join(f"{key}: {value}" for key, value in sorted(said.items()))
    return tensors[_name(path, tensors.keys())].double().numpy(), identity


def _name(path: Path, names: Collection[str]) -> str:
    if _FEATURES in names or len(names) == 1:
        return _FEATURES if _FEATURES in names else next(iter(names))
    raise DataError(
        f"cannot tell the features of {path}: got {', '.join(sorted(names)) or 'nothing'}; allowed is an array named "
        f"{_FEATURES}, or one alone; rename it"
    )
