"""Candidates of a set of image files: where the bytes of each lie, and what is known about it."""

import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from davae.data.columns import TextLists, Texts, concatenated

UNLABELLED = -1
_LARGEST_LABEL = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Record:
    """One candidate image: `size` bytes of `file` from `offset`, and what is known about it.

    Attributes:
        stamp: Changes when the bytes may have changed (modification time of the file, in nanoseconds).
        label: None when the set does not give one.
        captions: One or several sentences; () when the set has none.
        file_size: Bytes of the whole file; None where the image is all of it.
    """

    id: str
    file: str
    offset: int
    size: int
    stamp: int
    label: int | None = None
    captions: tuple[str, ...] = ()
    file_size: int | None = None

    def read(self) -> bytes:
        """Return the bytes. Opens the file anew, so threads, forks and pickles share nothing.

        Raises:
            OSError: The file cannot be read, or has another size than when it was found.
        """
        with Path(self.file).open("rb", buffering=0) as file:
            found, expected = os.fstat(file.fileno()).st_size, self.size if self.file_size is None else self.file_size
            if found != expected:
                raise OSError(errno.ESTALE, f"the file has {found} bytes, it had {expected} when it was found")
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a set by column, [N] each: a hundred bytes an image beside its texts.

    Attributes:
        ids: Of the images.
        files: Path of each file that holds images, [F].
        file_sizes: Their bytes, [F].
        file_of: Which of them holds an image.
        offsets: See `Record`, also for `sizes`, `stamps` and `captions`.
        labels: -1 where there is none.
    """

    ids: Texts
    files: Texts
    file_sizes: NDArray[np.int64]
    file_of: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    stamps: NDArray[np.int64]
    labels: NDArray[np.int64]
    captions: TextLists

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """Records by column."""
        rows, files = tuple(records), dict[str, int]()
        file_of = np.array([files.setdefault(row.file, len(files)) for row in rows], np.int32)
        whole = {row.file: row.size if row.file_size is None else row.file_size for row in rows}
        labels = (UNLABELLED if row.label is None else min(row.label, _LARGEST_LABEL) for row in rows)
        return cls(
            ids=Texts.of(row.id for row in rows),
            files=Texts.of(files),
            file_sizes=np.fromiter(whole.values(), np.int64, len(whole)),
            file_of=file_of,
            offsets=np.fromiter((row.offset for row in rows), np.int64, len(rows)),
            sizes=np.fromiter((row.size for row in rows), np.int64, len(rows)),
            stamps=np.fromiter((row.stamp for row in rows), np.int64, len(rows)),
            labels=np.fromiter(labels, np.int64, len(rows)),
            captions=TextLists.of(row.captions for row in rows),
        )

    @classmethod
    def joined(cls, parts: Sequence["Records"]) -> "Records":
        """The records of several sets of files."""
        starts = accumulate((len(part.files) for part in parts), initial=0)
        return cls(
            ids=Texts.joined([part.ids for part in parts]),
            files=Texts.joined([part.files for part in parts]),
            file_sizes=concatenated([part.file_sizes for part in parts]),
            file_of=concatenated(
                [part.file_of + start for part, start in zip(parts, starts, strict=False)], np.int32
            ),
            offsets=concatenated([part.offsets for part in parts]),
            sizes=concatenated([part.sizes for part in parts]),
            stamps=concatenated([part.stamps for part in parts]),
            labels=concatenated([part.labels for part in parts]),
            captions=TextLists.joined([part.captions for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, position: int) -> Record:
        file, label = int(self.file_of[position]), int(self.labels[position])
        return Record(
            self.ids[position],
            self.files[file],
            int(self.offsets[position]),
            int(self.sizes[position]),
            int(self.stamps[position]),
            None if label == UNLABELLED else label,
            self.captions[position],
            int(self.file_sizes[file]),
        )
