"""Training and test parts of an image set."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from davae.core.randomness import permutation
from davae.data.buckets import Size
from davae.data.folder import FolderSource
from davae.data.shards import ShardSource
from davae.data.solids import SolidsSource
from davae.data.source import DataError, ImageSource


class Subset:
    """Some images of a source, as a source."""

    def __init__(self, source: ImageSource, indices: Sequence[int], name: str) -> None:
        self.source, self.indices = source, list(indices)
        self.ids = [source.ids[index] for index in self.indices]
        self.labels = [source.labels[index] for index in self.indices]
        self.captions = [source.captions[index] for index in self.indices]
        self.sizes = None if source.sizes is None else [source.sizes[index] for index in self.indices]
        self.class_names = source.class_names
        self.skipped = source.skipped
        self.fingerprint = f"{source.fingerprint}-{name}-{len(self.indices)}"

    def __len__(self) -> int:
        return len(self.indices)

    def images(self, indices: Sequence[int], size: int | Size) -> Tensor:
        """See `ImageSource`."""
        return self.source.images([self.indices[index] for index in indices], size)


def hold_out(source: ImageSource, count: int) -> tuple[ImageSource, ImageSource]:
    """(training, test) with `count` test images, chosen once and for all."""
    if count >= len(source):
        raise DataError(
            f"Cannot hold out {count} test images of a set of {len(source)}. Lower data.test_count or add images."
        )
    order = permutation(0, "hold out", 0, len(source)).tolist()
    return Subset(source, sorted(order[count:]), "train"), Subset(source, sorted(order[:count]), "test")


def first(source: ImageSource, count: int, name: str = "test") -> ImageSource:
    """At most `count` images, spread evenly over the set."""
    if count >= len(source):
        return source
    return Subset(source, [index * len(source) // count for index in range(count)], name)


def filling(source: ImageSource, size: int | Size) -> ImageSource:
    """The images of a source that fill a size, (height, width) or the side of a square, without being enlarged."""
    if source.sizes is None:
        return source
    tall, wide = (size, size) if isinstance(size, int) else size
    indices = [index for index, (height, width) in enumerate(source.sizes) if height >= tall and width >= wide]
    if not indices:
        raise DataError(
            f"No image fills {wide}x{tall} pixels: got {len(source)} images, for example {source.ids[0]} of "
            f"{source.sizes[0][1]}x{source.sizes[0][0]}; allowed are images of at least this size. Lower image_size "
            f"or take larger images."
        )
    return source if len(indices) == len(source) else Subset(source, indices, f"{wide}x{tall}")


def open_train_test(
    kind: str, path: str | None, min_side: int, test_count: int, count: int, seed: int
) -> tuple[ImageSource, ImageSource]:
    """Open a data set and split it.

    Args:
        kind: "auto", "solids", "folder" or "shards".
        path: of a folder or shards.
        min_side: smaller images are skipped.
        test_count: test images; they come from a `val` part where there is one, else they are held out.
        count: training scenes (solids).
        seed: of the scenes (solids).
    """
    if kind == "solids":
        return SolidsSource(count, seed), SolidsSource(test_count, seed + 1_000_003)
    assert path is not None
    root = Path(path)
    if kind == "shards" or (kind == "auto" and (path.endswith(".tar") or any(root.glob("*.tar")))):
        if any(root.glob("train-*.tar")) and any(root.glob("val-*.tar")):
            train: ImageSource = ShardSource(str(root / "train-*.tar"), min_side)
            return train, first(ShardSource(str(root / "val-*.tar"), min_side), test_count)
        return hold_out(ShardSource(path, min_side), test_count)
    if (root / "train").is_dir() and (root / "val").is_dir():
        return FolderSource(root / "train", min_side), first(FolderSource(root / "val", min_side), test_count)
    return hold_out(FolderSource(root, min_side), test_count)
