"""Arrays that are kept in the cache folder: as they were written, or not there.

They can all be made again, so that whatever is wrong with a file costs the time of that and nothing else. Several
processes may use one at once: it is replaced as a whole, and the last one stays.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from davae.core.files import DIGEST_SIZE, cache_folder, replacing, sweep

_DAMAGE = (OSError, SafetensorError, KeyError, ValueError, TypeError)  # what reading a file of other contents raises

Arrays = Mapping[str, NDArray[Any]]


class KeptArrays:
    """The file of one set.

    Args:
        kind: of what is kept, the name of a folder.
        where: path or pattern of the set.
        maker: format and versions; a file of another one does not serve.
    """

    def __init__(self, kind: str, where: str, maker: str) -> None:
        self.path, self.maker = _path_of(kind, where), maker

    def read(self) -> dict[str, NDArray[Any]] | None:
        """What is kept; None where nothing is, or not what was written."""
        if self.path is None:
            return None
        try:
            with safe_open(self.path, framework="np") as file:
                marks = file.metadata() or {}
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except _DAMAGE:
            return None
        return stored if marks == self._marks(stored) else None

    def write(self, arrays: Arrays) -> None:
        """Keep arrays in the place of those before. Where the cache folder cannot be written nothing is kept."""
        if self.path is None:
            return
        try:
            sweep(self.path.parent)
            for left in self.path.parent.glob(f".{self.path.name}.{'[0-9a-f]' * 32}"):  # of earlier versions
                left.unlink(missing_ok=True)
            with replacing(self.path) as temporary:
                save_file(dict(arrays), temporary, self._marks(arrays))
        except (OSError, SafetensorError):  # a full disk, a folder that is not ours: the set serves without
            return

    def _marks(self, arrays: Arrays) -> dict[str, str]:
        """What has to agree for a file to serve: who made it, and the bytes."""
        digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
        for name in sorted(arrays):
            digest.update(f"{name} {arrays[name].nbytes} ".encode())
            digest.update(arrays[name].data)
        return {"format": self.maker, "checksum": digest.hexdigest()}


def _path_of(kind: str, where: str) -> Path | None:
    """The file of a set; None where there is no place for it."""
    name = hashlib.blake2b(os.fsencode(Path(where).absolute()), digest_size=DIGEST_SIZE).hexdigest()
    try:
        return cache_folder() / kind / f"{name}.safetensors"
    except RuntimeError:  # no home, as in some containers
        return None
