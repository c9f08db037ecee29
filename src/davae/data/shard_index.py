"""What a set's tar shards hold, kept in the cache folder: headers are read once and not at every opening.

A shard is known again by its name, size, time and inode. Ids, places, labels and captions of its samples are kept: 48
bytes a sample beside the texts.
"""

import json
from collections.abc import Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from davae.data.columns import TextLists, Texts, concatenated
from davae.data.kept_arrays import KeptArrays
from davae.data.records import Records
from davae.data.tar_samples import TarSamples

_FORMAT = "1"  # another one where `tar_samples` finds other samples
_COLUMNS = ("offsets", "sizes", "labels")

Known = tuple[int, int, int]
"""Size, time of the last change and inode of a shard."""


def known_by(file: Path) -> Known:
    """What a shard is known by beside its name."""
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class ShardIndex:
    """The samples of shards.

    Args:
        where: path or pattern of the set.
        kind: of what is taken of each sample; empty of its image.
    """

    def __init__(self, where: str, kind: str = "") -> None:
        self._kept = KeptArrays("shards", f"{where}{kind and f' {kind}'}", _FORMAT)
        stored = self._kept.read()
        self._stored: Mapping[str, NDArray[Any]] = {} if stored is None else stored
        rows = [] if stored is None else json.loads(stored["shards"].tobytes())
        ends = accumulate((row["count"] for row in rows), initial=0)
        self._shards = {
            row["name"]: (tuple(row["known_by"]), row["without_image"], start, stop)
            for row, (start, stop) in zip(rows, pairwise(ends), strict=True)
        }

    def find(self, name: str, file: Path, known: Known) -> TarSamples | None:
        """The samples of a shard; None where it is another one than was kept."""
        kept = self._shards.get(name)
        if kept is None or kept[0] != known:
            return None
        _, without_image, start, stop = kept
        stored, (size, stamp, _) = self._stored, known
        captions = TextLists(Texts(stored["captions"], stored["caption_ends"]), stored["captions_ends"])
        records = Records(
            ids=Texts(stored["ids"], stored["id_ends"]).part(start, stop),
            files=Texts.of([str(file)]),
            file_sizes=np.array([size], np.int64),
            file_of=np.zeros(stop - start, np.int32),
            stamps=np.full(stop - start, stamp, np.int64),
            captions=captions.part(start, stop),
            **{name: stored[name][start:stop] for name in _COLUMNS},
        )
        return TarSamples(records, [(name, reason) for name, reason in without_image])

    def keep(self, shards: Mapping[str, tuple[Known, TarSamples]]) -> None:
        """Keep the samples of all shards of the set, by name, in the place of those before."""
        records = [samples.records for _, samples in shards.values()]
        ids, captions = (
            Texts.joined([part.ids for part in records]),
            TextLists.joined([part.captions for part in records]),
        )
        rows = [
            {
                "name": name,
                "known_by": known,
                "count": len(samples.records),
                "without_image": samples.without_image,
            }
            for name, (known, samples) in shards.items()
        ]
        self._kept.write(
            {
                "shards": np.frombuffer(json.dumps(rows).encode(), np.uint8),
                "ids": ids.block,
                "id_ends": ids.ends,
                "captions": captions.texts.block,
                "caption_ends": captions.texts.ends,
                "captions_ends": captions.ends,
                **{name: concatenated([getattr(part, name) for part in records]) for name in _COLUMNS},
            }
        )
