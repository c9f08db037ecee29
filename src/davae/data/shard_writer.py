"""Tar shards in the WebDataset layout, written whole or not at all, the same bytes for the same samples."""

import io
import json
import re
import tarfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from davae.core.files import replacing
from davae.data.errors import DataError
from davae.data.leftovers import remove_leftovers

Content = bytes | str | Mapping[str, object]
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_EXTENSION = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")


class ShardWriter:
    """Writes one shard: it gets its name when the `with` block ends without an error.

    Args:
        path: of the shard, ending in ".tar". What stands there is replaced.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> "ShardWriter":
        remove_leftovers(self.path.parent, self.path.name)
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self.path))
            # USTAR has no room for times below a second or names beyond ASCII, so equal samples are equal bytes.
            self._tar = stack.enter_context(tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT))
            self._stack = stack.pop_all()
        return self

    def write(self, key: str, members: Mapping[str, Content]) -> None:
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
        self._stack.__exit__(kind, error, trace)

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        self._tar.addfile(member, io.BytesIO(content))


def _as_bytes(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        return content.encode()
    return json.dumps(content, sort_keys=True).encode()
