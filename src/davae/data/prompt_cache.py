"""The prompt cache: what the text encoders said of every caption, in safetensors shards, found by sample id.

Equal captions share one row, and row 0 is the empty prompt, whose id is `NULL`. Ids are kept as hashes in one sorted
array (24 bytes a sample with one caption), so that a million captions cost a reader, and each of its workers, next to
nothing.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from davae.core.files import DIGEST_SIZE, text_hash
from davae.core.tensor_files import load_tensors
from davae.data.cache_files import WHOLE, CacheKind, Part, Shard, shard_ranges
from davae.data.errors import DataError

FORMAT_VERSION = 2
_ONE_CAPTION = 1  # the format of a cache in which no sample has several: what earlier versions wrote and read
NULL = ""
"""Id of the empty prompt, which stands for "no caption"."""
REBUILD = "Rebuild it with 'davae prompts RECIPE'."
_KIND = CacheKind(
    name="prompt", command="davae prompts RECIPE", formats=(_ONE_CAPTION, FORMAT_VERSION), other_format=REBUILD
)
_INDEX = "ids.safetensors"


@dataclass(frozen=True)
class PromptSet:
    """Captions sorted out for encoding.

    Args:
        prompts: every prompt once; the empty one is the first.
        digests: hash of each prompt, uint8 [P, 16].
        ids: sorted hashes of the sample ids and of `NULL`, uint8 [N + 1, 16].
        rows: positions in `prompts` of the captions of the first of `ids`, then of the second and so on, int64.
        counts: captions of each of `ids`, 1 or more, int64 [N + 1].
        num_empty: samples without a caption.
    """

    prompts: Sequence[str]
    digests: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    rows: NDArray[np.int64]
    counts: NDArray[np.int64]
    num_empty: int

    @classmethod
    def of(cls, captions: Mapping[str, Sequence[str]]) -> "PromptSet":
        """Sort captions out.

        Args:
            captions: of every sample id. Blank ones count as none; a sample without one gets the empty prompt.

        Raises:
            DataError: a caption is not text, or a sample has the id of the empty prompt.
        """
        texts = {sample: _texts(sample, several) for sample, several in captions.items()}
        if texts.pop(NULL, (NULL,)) != (NULL,):
            raise DataError(
                f"Cannot encode captions: a sample with the caption {captions[NULL][0][:40]!r} has the empty string "
                f"as its id, which stands for the empty prompt. Name the sample."
            )
        found = {NULL: 0}
        rows = [[0], *([found.setdefault(text, len(found)) for text in several] for several in texts.values())]
        ids, prompts = _digests((NULL, *texts)), list(found)
        order = np.argsort(_sortable(ids))
        return cls(
            prompts=prompts,
            digests=_digests(prompts),
            ids=ids[order],
            rows=np.array([row for place in order.tolist() for row in rows[place]], np.int64),
            counts=np.array([len(rows[place]) for place in order.tolist()], np.int64),
            num_empty=sum(several == [0] for several in rows[1:]),
        )

    @property
    def has_several(self) -> bool:
        """Whether a sample has more than one caption."""
        return len(self.rows) > len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Hash of the ids and their captions, in any order of the ids."""
        digest = hashlib.blake2b(self.ids.tobytes(), digest_size=DIGEST_SIZE)
        digest.update(self.digests[self.rows].tobytes())
        if self.has_several:
            digest.update(self.counts.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PromptManifest:
    """What a prompt cache holds and what made it.

    Args:
        encoders: hash of the text encoders and tokenizers.
        max_length: tokens of the long text encoder.
        dtype: of the stored embeddings, for example "bfloat16".
        source: fingerprint of the ids and captions.
        tensors: name -> (dtype, shape of a row). The names are arguments of the pipeline's call.
        shards: file name and number of rows of each shard, in order.
    """

    encoders: str
    max_length: int
    dtype: str
    source: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    shards: tuple[tuple[str, int], ...] = ()
    format_version: int = _ONE_CAPTION

    @property
    def key(self) -> dict[str, object]:
        """What must agree for the cache to serve a recipe."""
        return {name: getattr(self, name) for name in ("encoders", "max_length", "dtype", "source")}


Encode = Callable[[int, int], Mapping[str, Tensor]]
"""(first prompt, number of prompts) -> tensors [number, ...]."""


def write_prompts(
    folder: Path, manifest: PromptManifest, prompts: PromptSet, shard_size: int, encode: Encode, part: Part = WHOLE
) -> Path:
    """Write a cache shard by shard; whole shards of the same prompts, encoders, length and dtype are kept.

    Of several processes, all call this with the same arguments but for `part`, and it returns in all of them when
    the cache is complete. The bytes on disk do not depend on how many they are.

    Args:
        folder: of the cache.
        manifest: without `shards` and `format_version`, which this function fills in.
        prompts: what is to be encoded.
        shard_size: prompts in a shard at most.
        encode: called only where a shard is missing.
        part: the shards that this process writes.
    """
    index = {"ids": torch.from_numpy(prompts.ids), "rows": torch.from_numpy(prompts.rows)}
    if prompts.has_several:
        index["counts"] = torch.from_numpy(prompts.counts)
        manifest = replace(manifest, format_version=FORMAT_VERSION)
    return _KIND.write(folder, manifest, _shards(manifest, prompts, shard_size, encode), part, {_INDEX: index})


def _shards(manifest: PromptManifest, prompts: PromptSet, shard_size: int, encode: Encode) -> Iterator[Shard]:
    """Each is keyed by its own prompts, so that it outlives a change of others."""
    for first, count in shard_ranges(len(prompts.prompts), shard_size):
        contents = hashlib.blake2b(
            prompts.digests[first : first + count].tobytes(), digest_size=DIGEST_SIZE
        ).hexdigest()
        yield Shard(first, count, {**manifest.key, "source": contents}, partial(encode, first, count))


class PromptCache:
    """Reads embeddings by sample id without holding them in memory. Works in forked and in spawned workers.

    Args:
        folder: of the cache.

    Raises:
        DataError: there is no complete cache, its format is another, or a shard is missing or cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _KIND.read_manifest(folder, PromptManifest)
        self._starts = [0]
        for name, count in self.manifest.shards:
            stored = set(_KIND.count_rows(folder / name, self.manifest.tensors))
            if stored != {count}:
                raise DataError(
                    f"The prompt shard {name} holds {stored} prompts, the manifest says {count}. {REBUILD}"
                )
            self._starts.append(self._starts[-1] + count)
        _KIND.require_whole(folder, [*(name for name, _ in self.manifest.shards), _INDEX])
        index = load_tensors(folder / _INDEX)
        self._ids, self._rows = _sortable(index["ids"].numpy()), index["rows"].numpy()
        self._ends = index["counts"].numpy().cumsum() if "counts" in index else None
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Number of samples, the empty prompt not counted."""
        return len(self._ids) - 1

    @property
    def has_several(self) -> bool:
        """Whether a sample has more than one caption."""
        return self._ends is not None

    @property
    def num_prompts(self) -> int:
        """Number of different prompts, the empty one counted."""
        return self._starts[-1]

    def require(self, **expected: object) -> None:
        """Refuse a cache whose key differs from what a recipe expects, with both values.

        Args:
            expected: entries of `PromptManifest.key`.

        Raises:
            DataError: one differs.
        """
        _KIND.require(self.folder, self.manifest.key, expected)

    def require_ids(self, ids: Sequence[str]) -> None:
        """Refuse a cache that lacks samples, without reading an embedding.

        Args:
            ids: of samples; `NULL` is the empty prompt.

        Raises:
            DataError: the cache lacks one.
        """
        self._places_of(ids)

    def embeddings(self, ids: Sequence[str], choice: Tensor | None = None) -> dict[str, Tensor]:
        """What the text encoders said of a caption of each sample: [len(ids), ...] in the stored dtypes.

        Args:
            ids: of samples; `NULL` is the empty prompt.
            choice: which of its captions, in [0, 1) from the first to the last, [len(ids)]; None takes the first.

        Raises:
            DataError: the cache lacks one.
        """
        places = self._places_of(ids)
        if self._ends is not None:
            starts = np.where(places > 0, self._ends[places - 1], 0)
            drawn = 0 if choice is None else (choice.numpy() * (self._ends[places] - starts)).astype(np.int64)
            places = starts + drawn
        rows = self._rows[places].tolist()
        read = {row: self._read(row) for row in set(rows)}
        return {name: torch.stack([read[row][name] for row in rows]) for name in self.manifest.tensors}

    def _places_of(self, ids: Sequence[str]) -> NDArray[np.intp]:
        """Where samples stand in the index [len(ids)]."""
        wanted = _sortable(_digests(ids))
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        known = self._ids[places] == wanted
        if not known.all():
            missing = [sample for sample, found in zip(ids, known, strict=True) if not found]
            raise DataError(
                f"The prompt cache in {self.folder} holds {len(self)} samples, but not {missing[0]!r} "
                f"({len(missing)} of {len(ids)} asked for are missing). {REBUILD}"
            )
        return places

    def _read(self, row: int) -> dict[str, Tensor]:
        shard = bisect_right(self._starts, row) - 1
        return {name: rows[row - self._starts[shard]] for name, rows in self._shard(shard).items()}

    def _shard(self, number: int) -> dict[str, Tensor]:
        """Tensors that stay in the file: only rows that are read take memory. A fork shares nothing but the pages."""
        if number not in self._mapped:
            with safe_open(self.folder / self.manifest.shards[number][0], framework="pt") as file:
                self._mapped[number] = {name: file.get_tensor(name) for name in self.manifest.tensors}
        return self._mapped[number]

    def __reduce__(self) -> tuple[type["PromptCache"], tuple[Path]]:
        return PromptCache, (self.folder,)


def is_complete(folder: Path) -> bool:
    """Whether a whole cache stands in a folder."""
    try:
        PromptCache(folder)
    except DataError:
        return False
    return True


def _texts(sample: str, captions: Sequence[str]) -> tuple[str, ...]:
    """The captions of a sample; the empty prompt where there is none."""
    if isinstance(captions, str):
        raise DataError(f"Cannot encode captions: sample {sample!r} has the string {captions[:40]!r}. Give a list.")
    texts = tuple(text for text in captions if _is_given(sample, text))
    return texts or (NULL,)


def _is_given(sample: str, caption: object) -> bool:
    """Whether a caption says anything."""
    if not isinstance(caption, str):
        raise DataError(
            f"The caption of sample {sample!r} is not text: got {type(caption).__name__} {str(caption)[:40]!r}. "
            f"Give a string; an empty one stands for no caption."
        )
    try:
        caption.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The caption of sample {sample!r} is not Unicode text: {error}. Correct the file."
        ) from error
    return bool(caption.strip())


def _digests(texts: Iterable[str]) -> NDArray[np.uint8]:
    """Hashes [N, 16]. Names of files may hold bytes that are no text."""
    joined = b"".join(bytes.fromhex(text_hash(text)) for text in texts)
    return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_SIZE)


def _sortable(digests: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Hashes [N, 16] as byte strings [N], which numpy sorts and searches."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST_SIZE}").reshape(-1)
