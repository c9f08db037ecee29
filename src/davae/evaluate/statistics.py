"""Statistics files: mean and covariance of features, of all the kinds that people have, and what made them.

| file | keys | features are taken to be |
|---|---|---|
| ours | `davae` (JSON), moments, rows where they were asked for | what it says |
| guided-diffusion's | `mu`, `sigma`, `mu_s`, `sigma_s`, `arr_0` | protocol `adm` |
| clean-fid's | `mu`, `sigma`; named ..._clean_..., ..._legacy_pytorch_..., ..._legacy_tensorflow_... | as named |
| pytorch-fid's | `mu`, `sigma` | protocol `pytorch-fid` |

Ours has the keys of guided-diffusion's for the Inception features, so that other tools read it too.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.core.files import replacing
from davae.data.errors import DataError
from davae.data.image_list import ARRAY, ImageList, open_images
from davae.data.npz import array_names, read_array
from davae.evaluate.metric import Moments, Rows
from davae.evaluate.spaces import inception
from davae.evaluate.spaces.resize import Protocol
from davae.evaluate.spaces.space import FeatureSpace, Identity

_FORMAT = 1
_ABOUT = "davae"
_SHORT = {("inception", "pool"): ("mu", "sigma"), ("inception", "spatial"): ("mu_s", "sigma_s")}
_CLEAN_FID = re.compile(r"_(clean|legacy_pytorch|legacy_tensorflow)_")
_CLEAN_FID_PROTOCOLS: dict[str, Protocol] = {
    "clean": "clean",
    "legacy_pytorch": "pytorch-fid",
    "legacy_tensorflow": "adm",
}


@dataclass(frozen=True)
class StatisticsFile:
    """A file of statistics.

    Args:
        path: of it.
        kind: whose layout it has, in words.
        count: images that it is of; 0 where it does not say.
        identities: space -> what made its features, as far as the file says it.
        names: of its arrays.
    """

    path: Path
    kind: str
    count: int
    identities: Mapping[str, Identity]
    names: frozenset[str]

    def has(self, space: str, feature: str, takes: str) -> bool:
        """Whether it holds "moments" or "rows" of a feature."""
        return set(_keys(space, feature, takes)) <= self.names

    def moments(self, space: str, feature: str) -> Moments:
        """Of a feature that it has.

        Raises:
            DataError: they are damaged, not finite, or of no use as a mean and a covariance.
        """
        mean, covariance = (
            np.asarray(read_array(self.path, key), dtype=np.float64) for key in _keys(space, feature, "moments")
        )
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise DataError(
                f"cannot take {space} statistics from {self.path}: got a mean {list(mean.shape)} and a covariance "
                f"{list(covariance.shape)}; allowed are [F] and [F, F]; fetch or write the file again"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise DataError(
                f"cannot take {space} statistics from {self.path}: got numbers that are not finite; allowed are "
                "finite ones; fetch or write the file again"
            )
        return Moments(mean, covariance)

    def rows(self, space: str, feature: str) -> Rows:
        """Of a feature that it has."""
        return read_array(self.path, f"{space}.{feature}")

    def require(self, space: FeatureSpace) -> None:
        """Refuse it where its features were made by something else.

        Raises:
            ValueError: with both.
        """
        stated = self.identities.get(space.name, {})
        for key, theirs in stated.items():
            ours = space.identity.get(key)
            if ours != theirs:
                raise ValueError(
                    f"{self.path} ({self.kind}) does not compare with these features: its {key} is '{theirs}', "
                    f"here it is '{ours}'. Judge by its protocol (--protocol), or make statistics of the reference "
                    f"images with 'davae statistics'."
                )


@dataclass(frozen=True)
class Reference:
    """What images are compared with: images, statistics, or both.

    Args:
        where: its path.
        images: None where there are statistics alone.
        statistics: None where there are images alone.
    """

    where: str
    images: ImageList | None = None
    statistics: StatisticsFile | None = None


def open_reference(path: str | Path) -> Reference:
    """A folder, tar shards, an npz of images, or a statistics file of any kind; guided-diffusion's is both.

    Raises:
        DataError: it cannot be used; the text says why.
    """
    place = Path(path)
    if place.suffix != ".npz" or not place.is_file():
        return Reference(str(path), open_images(path))
    names = frozenset(array_names(place))
    images = open_images(place) if ARRAY in names else None
    statistics = _open(place, names) if names & {_ABOUT, "mu", "sigma"} else None
    if images is None and statistics is None:
        raise DataError(
            f"cannot compare with {place}: got arrays {', '.join(sorted(names)) or 'none'}; allowed are images "
            f"({ARRAY}) or statistics (mu and sigma); fetch or write it again"
        )
    return Reference(str(path), images, statistics)


def write_statistics(
    path: Path,
    count: int,
    spaces: Mapping[str, FeatureSpace],
    moments: Mapping[tuple[str, str], Moments],
    rows: Mapping[tuple[str, str], Rows],
    made_of: Mapping[str, Any],
) -> None:
    """Write a file, whole or not at all.

    Args:
        path: of it, ending in .npz.
        count: images.
        spaces: those that features are of.
        moments: by (space, feature).
        rows: by (space, feature), for metrics that need them.
        made_of: what is known of the images, as JSON values.
    """
    about = {
        "format": _FORMAT,
        "count": count,
        "identities": {name: space.identity for name, space in spaces.items()},
        "about": {name: dict(space.about) for name, space in spaces.items()},
        "made_of": dict(made_of),
    }
    arrays: dict[str, NDArray[Any]] = {_ABOUT: np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)}
    for (space, feature), moment in moments.items():
        mean, covariance = _keys(space, feature, "moments")
        arrays |= {mean: moment.mean, covariance: moment.covariance}
    for (space, feature), vectors in rows.items():
        arrays[f"{space}.{feature}"] = vectors[:]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _open(path: Path, names: frozenset[str]) -> StatisticsFile:
    if _ABOUT in names:
        return _open_ours(path, names)
    lacking = {"mu", "sigma"} - names
    if lacking:
        raise DataError(
            f"cannot take statistics from {path}: got no {' and no '.join(sorted(lacking))}; allowed is a mean (mu) "
            "with a covariance (sigma); fetch or write it again"
        )
    named = _CLEAN_FID.search(path.name)
    if "mu_s" in names:
        kind, protocol = "guided-diffusion's layout", "adm"
    elif named is not None:
        kind, protocol = f"clean-fid's, mode {named[1]}", _CLEAN_FID_PROTOCOLS[named[1]]
    else:
        kind, protocol = "pytorch-fid's layout", "pytorch-fid"
    return StatisticsFile(path, kind, 0, {inception.NAME: inception.identity(protocol)}, names)  # type: ignore[arg-type]


def _open_ours(path: Path, names: frozenset[str]) -> StatisticsFile:
    try:
        about = json.loads(bytes(read_array(path, _ABOUT)))
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']!r}")
        return StatisticsFile(path, "davae statistics", int(about["count"]), about["identities"], names)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read {path}: got {error}; allowed is a statistics file of this version; "
            "write it again with 'davae statistics'"
        ) from error


def _keys(space: str, feature: str, takes: str) -> tuple[str, ...]:
    if takes == "rows":
        return (f"{space}.{feature}",)
    return _SHORT.get((space, feature), (f"{space}.{feature}.mu", f"{space}.{feature}.sigma"))
