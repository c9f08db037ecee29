"""A cache on disk: keyed safetensors shards and a manifest; complete or absent.

Each shard carries the key it was made for, so that an interrupted writing is taken up where it stopped. The manifest
is written last and under a temporary name: a folder with a manifest holds a whole cache.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from davae.core.checked import damaged, note
from davae.core.files import replacing
from davae.core.state import StateError, parse_json, read_json, write_json
from davae.core.tensor_files import DamagedFileError, is_whole, metadata_of, save_tensors
from davae.data.errors import DataError
from davae.data.fingerprints import are_of_other_kinds
from davae.data.leftovers import remove_leftovers

logger = logging.getLogger(__name__)
Contents = TypeVar("Contents", bound="Manifest")

_MANIFEST = "manifest.json"


def _alone() -> None:
    """One process waits for nobody."""


@dataclass(frozen=True)
class Part:
    """The shards of a cache that one of several processes writes: i belongs to process i mod `num_processes`.

    Args:
        process: which one this is, from 0; 0 also writes what there is once.
        num_processes: that write the cache. All of them see the same folder.
        wait: returns when every process has called it.

    Raises:
        ValueError: there is no such process.
    """

    process: int = 0
    num_processes: int = 1
    wait: Callable[[], None] = _alone

    def __post_init__(self) -> None:
        if not 0 <= self.process < self.num_processes:
            raise ValueError(
                f"Cannot share the writing of a cache; got process {self.process} of {self.num_processes}, allowed "
                f"are 0 to {self.num_processes - 1}. Count the processes from 0."
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is once."""
        return self.process == 0

    def owns(self, number: int) -> bool:
        """Whether this process writes shard `number`."""
        return number % self.num_processes == self.process

    def progress(self, ranges: Iterable[tuple[int, int]]) -> tuple[int, dict[int, int]]:
        """(samples of this process, for each of its shards the samples before it) of all shards' (first, count)."""
        total, before = 0, {}
        for number, (first, count) in enumerate(ranges):
            if self.owns(number):
                before[first] = total
                total += count
        return total, before


WHOLE = Part()
"""All shards, for a single process."""


@dataclass(frozen=True)
class Shard:
    """A shard to be written.

    Args:
        first: its first row, counted over the cache.
        count: its rows.
        key: what made it, JSON; a stored shard of the same key and count is kept.
        tensors: makes its tensors [count, ...]; called only where the shard is missing.
    """

    first: int
    count: int
    key: Mapping[str, object]
    tensors: Callable[[], Mapping[str, Tensor]]


class Manifest(Protocol):
    """A data class that says what a cache holds and what made it; it has the field `format_version`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def key(self) -> Mapping[str, object]:
        """What must agree for the cache to serve a recipe."""

    @property
    def shards(self) -> Sequence[tuple[str, int]]:
        """File name and number of rows of each shard, in order."""


@dataclass(frozen=True)
class CacheKind:
    """What tells one kind of cache from another, on disk and in what its user is told.

    Args:
        name: "latent" or "prompt"; a shard's file has the plural and its first row as its name.
        command: makes such a cache.
        formats: of the manifest that can be read, oldest first.
        other_format: what to do about a cache of none of the `formats`, a sentence.
    """

    name: str
    command: str
    formats: tuple[int, ...]
    other_format: str

    def write(
        self,
        folder: Path,
        manifest: Manifest,
        shards: Iterable[Shard],
        part: Part = WHOLE,
        beside: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> Path:
        """Write a cache shard by shard; whole shards of the same key that are already there are kept.

        Of several processes, all call this with the same arguments but for `part`, and it returns in all of them
        when the cache is complete. The bytes on disk do not depend on how many they are.

        Args:
            folder: of the cache.
            manifest: without `shards`, which this method fills in.
            shards: in storage order.
            part: the shards that this process writes.
            beside: file name -> tensors of what is stored once, next to the shards.

        Returns:
            The folder.

        Raises:
            DataError: a file cannot be written; the shards before it are kept.
        """
        named = {f"{self.name}s-{shard.first:08d}.safetensors": shard for shard in shards}
        others = {name for number, name in enumerate(named) if not part.owns(number)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MANIFEST).unlink(missing_ok=True)  # an unfinished cache has no manifest
        remove_leftovers(folder, spare=others)
        for name, shard in named.items():
            mark = json.dumps({**shard.key, "count": shard.count}, sort_keys=True)
            if name not in others and _mark(folder / name) != mark:
                save_shard(shard.tensors(), folder / name, {"key": mark})
        part.wait()
        if part.is_main:
            for file in folder.glob(f"{self.name}s-*.safetensors"):
                if file.name not in named:
                    file.unlink()
            for name, tensors in (beside or {}).items():
                save_shard(tensors, folder / name)
            listed = [(name, shard.count) for name, shard in named.items()]
            note(folder, [*named, *(beside or {})])
            write_json(folder / _MANIFEST, {**asdict(manifest), "shards": listed})
        part.wait()
        return folder

    def read_manifest(self, folder: Path, shape: type[Contents]) -> Contents:
        """The manifest of a complete cache.

        Args:
            folder: of the cache.
            shape: class of its manifest.

        Raises:
            DataError: there is no complete cache, its manifest is damaged, or its format is another.
        """
        path = folder / _MANIFEST
        remedy = f"Re-run '{self.command}': whole shards are kept, the manifest is made again."
        try:
            stored = read_json(path, dict[str, Any], remedy)
            if stored.get("format_version") not in self.formats:
                raise DataError(
                    f"The {self.name} cache in {folder} has format {stored.get('format_version')}; this davae reads "
                    f"{' and '.join(map(str, self.formats))}. {self.other_format}"
                )
            return parse_json(path, stored, shape, remedy)
        except FileNotFoundError:
            raise DataError(
                f"There is no complete {self.name} cache in {folder}. Make one with '{self.command}'."
            ) from None
        except StateError as error:
            raise DataError(str(error)) from error

    def count_rows(self, path: Path, names: Iterable[str]) -> list[int]:
        """Rows of each named tensor of a shard, without reading them.

        Raises:
            DataError: the shard is missing or cut off.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return [file.get_slice(name).get_shape()[0] for name in names]
        except (SafetensorError, FileNotFoundError) as error:
            raise DataError(
                f"The {self.name} shard {path.name} is missing or cut off ({error}). Re-run '{self.command}': whole "
                f"shards are kept, this one is made again."
            ) from error

    def require_whole(self, folder: Path, names: Iterable[str]) -> None:
        """Refuse files of a cache that are not what was written. They are read when something touched them.

        Raises:
            DataError: one is missing or damaged.
        """
        if found := damaged(folder, names, is_whole):
            raise DataError(
                f"The {self.name} cache in {folder} is damaged: {len(found)} of its files are cut off, changed or "
                f"missing, for example {found[0]}. Re-run '{self.command}': what is whole is kept, the rest is made "
                f"again."
            )

    def require(self, folder: Path, key: Mapping[str, object], expected: Mapping[str, object]) -> None:
        """Refuse a cache whose key differs from what a recipe expects, with both values.

        Args:
            folder: of the cache.
            key: of its manifest.
            expected: entries of `key`.

        Raises:
            DataError: one differs.
        """
        for name, value in expected.items():
            if key[name] != value and not are_of_other_kinds(key[name], value):
                raise DataError(
                    f"The {self.name} cache in {folder} does not fit: {name} of the cache {key[name]}, "
                    f"of the recipe {value}. Rebuild it with '{self.command}'."
                )


def has_manifest(folder: Path) -> bool:
    """Whether a cache was written to its end in a folder; its shards are not looked at."""
    return (folder / _MANIFEST).exists()


def shard_ranges(total: int, shard_size: int) -> Iterator[tuple[int, int]]:
    """(first, count) of shards of at most `shard_size` samples."""
    for first in range(0, total, shard_size):
        yield first, min(shard_size, total - first)


def save_shard(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name and rename it.

    Raises:
        DataError: it cannot be written; nothing of it stays behind.
    """
    try:
        with replacing(path) as temporary:
            save_tensors(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"Could not write {path}: {error}. Free some space and run the same command again; "
            f"the shards before it are kept."
        ) from error


def _mark(path: Path) -> str | None:
    """The key and count that a stored shard was made for; None without a whole shard."""
    try:
        return metadata_of(path).get("key")
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        logger.warning("%s; it is made again.", error)
        return None
