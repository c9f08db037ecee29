"""Tar shards in the WebDataset layout as an `ImageSource`.

The tar headers are read once; images are then read at random by offset. The order is that of the shards, which reads
fastest.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from davae.data.annotations import read_text
from davae.data.errors import DataError
from davae.data.image_source import FileSource
from davae.data.records import Records
from davae.data.shard_index import Known, ShardIndex, known_by
from davae.data.shard_paths import find_shards
from davae.data.tar_samples import TarSamples, read_samples


class ShardSource(FileSource):
    """All samples of a set of tar shards; a sample's id is "shard/key".

    A `classes.json` beside the shards names the classes: a list of names, or an object from index to name (or to
    an object with a `name`).
    """

    def __init__(self, shards: str | Path, min_side: int, kind: str = "") -> None:
        """Index the shards and check the images.

        Args:
            shards: A folder with `.tar` files, one such file, or a pattern such as `train-*.tar` or
                `train-{00000..00009}.tar`.
            min_side: Shortest side in pixels that an image may have; smaller ones are skipped.
            kind: Of what stands beside a sample's image ("baseline" is `KEY.baseline.png`), to be taken in its place;
                empty takes the image.

        Raises:
            DataError: No shard, a missing or damaged one, wrong annotations, or no usable image.
        """
        root, files = find_shards(str(shards))
        samples = _samples(str(shards), root, files, kind)
        super().__init__(
            str(shards),
            Records.joined([shard.records for shard in samples]),
            min_side=min_side,
            class_names=_read_class_names(files[0].parent / "classes.json"),
            unusable=[row for shard in samples for row in shard.without_image],
        )


def _samples(where: str, root: Path, files: Sequence[Path], kind: str) -> list[TarSamples]:
    """What the shards hold; those that are the same as at the last opening are not read again."""
    index = ShardIndex(where, kind)
    found: dict[str, tuple[Known, TarSamples]] = {}
    is_new = False
    for file in files:
        name, known = file.relative_to(root).with_suffix("").as_posix(), known_by(file)
        samples = index.find(name, file, known)
        if samples is None:
            samples, is_new = read_samples(file, name, kind), True
        found[name] = (known, samples)
    if is_new:
        index.keep(found)
    return [samples for _, samples in found.values()]


def _read_class_names(file: Path) -> tuple[str, ...]:
    if not file.exists():
        return ()
    wrong = DataError(
        f"cannot read class names from {file}: got something else; allowed is a list of names, or an object "
        'from the indices "0", "1", ... to names; correct the file'
    )
    try:
        content = json.loads(read_text(file.read_bytes(), str(file)))
    except json.JSONDecodeError as error:
        raise wrong from error
    entries: Sequence[object] = content if isinstance(content, list) else ()
    if isinstance(content, dict):
        entries = [content.get(str(index)) for index in range(len(content))]
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    strings = tuple(name for name in names if isinstance(name, str))
    if not strings or len(strings) < len(names):
        raise wrong
    return strings
