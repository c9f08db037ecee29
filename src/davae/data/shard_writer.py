"""Tar shards in the WebDataset layout, written whole or not at all, the same bytes for the same samples."""

import io
import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from davae.data.source import DataError

_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")


class ShardWriter:
    """Writes one shard: it gets its name when the `with` block ends without an error.

    Args:
        path: of the shard, ending in ".tar". What stands there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._keys: set[str] = set()

    def __enter__(self) -> "ShardWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # USTAR has no room for times below a second or names beyond ASCII, so equal samples are equal bytes.
        self._tar = tarfile.open(self._temporary, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self

    def write(self, key: str, members: Mapping[str, bytes | str | Mapping[str, Any]]) -> None:
        """Add a sample.

        Args:
            key: what its members share, without a dot.
            members: extension -> contents: bytes as they are, text as UTF-8, anything else as a JSON object.

        Raises:
            DataError: the key was written before, or a name cannot be one of WebDataset's.
        """
        if _KEY.fullmatch(key) is None or key in self._keys:
            raise DataError(
                f"cannot write sample {key!r} to {self.path}: got a name that is taken or malformed; allowed are "
                "letters, digits, - and _, each once; number the samples"
            )
        self._keys.add(key)
        for extension, content in members.items():
            if _EXTENSION.fullmatch(extension) is None:
                raise DataError(
                    f"cannot write member {key}.{extension} to {self.path}: allowed are lower-case extensions; "
                    "rename it"
                )
            self._add(f"{key}.{extension}", _as_bytes(content))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()
        if kind is None:
            self._temporary.rename(self.path)
        else:
            self._temporary.unlink()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))


def _as_bytes(content: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    return json.dumps(content, sort_keys=True).encode()
