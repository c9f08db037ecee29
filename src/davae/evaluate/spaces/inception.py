"""The FID Inception under its three named preprocessings: pool, logits and the map of sFID."""

from functools import partial
from pathlib import Path

from davae.core.files import file_sha256
from davae.evaluate.spaces.resize import PROTOCOLS, Protocol, preprocess
from davae.evaluate.spaces.space import QUANTISATION, FeatureSpace, Identity, Loading
from davae.models.inception import SIDE, InceptionFID
from davae.models.weights import INCEPTION, fetch, find

NAME = "inception"
EXTRACTOR = "FID Inception 2015-12-05"


def load(loading: Loading) -> FeatureSpace:
    """The space; see `InceptionFID.from_pretrained` for where weights are looked for, and for errors."""
    path = _path(loading)
    try:
        network = InceptionFID.from_pretrained(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Or give --weights {NAME}=FILE, or allow the download (--download)."
        ) from error
    assert path is not None
    return FeatureSpace(
        name=NAME,
        identity={**identity(loading.protocol), "weights": file_sha256(path)},
        network=network,
        lengths={"pool": 2048, "logits": 1008, "spatial": 2023},
        prepare=partial(preprocess, protocol=loading.protocol, side=SIDE),
        compute=lambda images: network(images)._asdict(),
        about={"protocol": loading.protocol, "weights file": path.name},
    )


def at_hand(loading: Loading) -> FeatureSpace | None:
    """The space, or None where its weights are not on this machine; nothing is fetched."""
    return load(loading) if find(INCEPTION) is not None else None


def identity(protocol: Protocol) -> Identity:
    """What is known of features of a protocol without their weights, as of a published statistics file."""
    return {
        "extractor": EXTRACTOR,
        "preprocessing": f"{protocol}: {PROTOCOLS[protocol]}",
        "quantisation": QUANTISATION,
    }


def _path(loading: Loading) -> Path | None:
    if loading.weights is not None:
        return Path(loading.weights)
    return find(INCEPTION) or (fetch(INCEPTION, loading.say) if loading.allow_download else None)
