"""What tells one set of images from another: their ids and contents, whatever their order, times and places.

Captions are no part of it: they change nothing that is made of images. Labels are part of `of_labelled_images`, on
which class-conditional training depends.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from davae.core.files import DIGEST_SIZE, bytes_digest
from davae.data.columns import array_of

_OF_CONTENTS = re.compile(r"(?:images|labelled-images)-(\d+)-[0-9a-f]{32}")
_OF_STAMPS = re.compile(
    r"[0-9a-f]{64}(?:-\S+-(\d+))?"
)  # of versions that told images apart by the times of their files


def identities(ids: Iterable[str], contents: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Hash of each image, [N, 16].

    Args:
        ids: of the images.
        contents: hashes of their bytes, [N, 16].
    """
    rows = zip(map(bytes, contents), ids, strict=True)
    joined = b"".join(bytes_digest(row + name.encode(errors="surrogatepass")) for row, name in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_SIZE)


def of_images(each: NDArray[np.uint8]) -> str:
    """Fingerprint of a set.

    Args:
        each: `identities` of its images.
    """
    return f"images-{len(each)}-{_hash(np.sort(_keys(each)))}"


def of_labelled_images(each: NDArray[np.uint8], labels: Sequence[int], class_names: Sequence[str]) -> str:
    """Fingerprint of a set and its labels.

    Args:
        each: `identities` of its images.
        labels: of these.
        class_names: of all labels.
    """
    order = np.argsort(_keys(each))
    ordered = array_of(labels)[order].astype("<i8")
    names = "".join(f"{len(name)} {name}" for name in class_names).encode(errors="surrogatepass")
    return f"labelled-images-{len(each)}-{_hash(each[order], ordered, np.frombuffer(names, np.uint8))}"


def are_of_other_kinds(stored: object, current: object) -> bool:
    """Whether two values are a fingerprint of an earlier version and one of now, of as many images.

    The two cannot be compared, and a training is not thrown away for that. Of a set that came with test images of its
    own the earlier version noted no number.
    """
    if not (isinstance(stored, str) and isinstance(current, str)):
        return False
    before, now = _OF_STAMPS.fullmatch(stored), _OF_CONTENTS.fullmatch(current)
    return before is not None and now is not None and before[1] in (None, now[1])


def _keys(each: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(each).view(f"S{DIGEST_SIZE}").reshape(-1)


def _hash(*arrays: NDArray) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
