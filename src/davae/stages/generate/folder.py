"""Owner of the folder that `davae generate` writes: images beside one another, or captioned tar shards."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from davae.data.shard_writer import ShardWriter
from davae.report.figures import image_grid, labelled_strip
from davae.stages.drawing import batches

IMAGE = ""
"""Kind of the image itself. The others ("preview", "baseline") stand beside it under names of their own."""
Drawing = tuple[int, dict[str, Tensor], dict[str, Any]]
"""(index, kind -> uint8 image [3, H, W], facts about the image)."""
_MARKER = "generation.json"
_QUALITY = {"png": {"compress_level": 6}, "jpg": {"quality": 95, "subsampling": 0}}
_SHOWN = 36


class Generated:
    """What stands and what is missing. A unit (a batch of images, or a shard) is complete or absent.

    Args:
        folder: where everything goes.
        inputs: all that the images depend on, as JSON values.
        captions: prompt of each image.
        kinds: `IMAGE` and what is kept beside it.
        form: of the images.
        unit: images a unit.
        shards: whether a unit is a tar shard.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, Any],
        captions: Sequence[str],
        *,
        kinds: Sequence[str] = (IMAGE,),
        form: Literal["png", "jpg"] = "png",
        unit: int,
        shards: bool,
    ) -> None:
        self.folder, self.inputs, self.captions, self.kinds = folder, dict(inputs), captions, kinds
        self.form, self.shards, self.units = form, shards, batches(len(captions), unit)

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises:
            ValueError: images of other settings stand there, or anything that is not of this command.
        """
        marker = self.folder / _MARKER
        if marker.exists():
            before = json.loads(marker.read_text())
            if changed := sorted(key for key in {*before, *self.inputs} if before.get(key) != self.inputs.get(key)):
                described = "; ".join(
                    f"{key}: {_short(before, key)}, now {_short(self.inputs, key)}" for key in changed
                )
                raise ValueError(
                    f"{self.folder} holds images of other settings ({described}). Use the old ones to go on, or give "
                    f"another folder."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} holds something that 'davae generate' did not write. Give a new or an empty folder."
            )

    def begin(self) -> None:
        """Make the folder and say in it what its images are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _MARKER).write_text(json.dumps(self.inputs, indent=1, sort_keys=True))

    def is_done(self, unit: Sequence[int]) -> bool:
        """Whether a unit stands."""
        if self.shards:
            return self._shard(unit).exists()
        return all(self._image(index, kind).exists() for index in unit for kind in self.kinds)

    def write(self, unit: Sequence[int], drawn: Iterable[Sequence[Drawing]]) -> None:
        """Draw and keep a unit, which is drawn in parts."""
        if self.shards:
            with ShardWriter(self._shard(unit)) as shard:
                for index, files, facts in self._encoded(drawn):
                    members = {f"{kind}.{self.form}".lstrip("."): data for kind, data in files.items()}
                    shard.write(f"{index:09d}", {**members, "txt": self.captions[index], "json": facts})
            return
        for index, files, facts in self._encoded(drawn):
            (self.folder / f"{index:06d}.json").write_text(json.dumps(facts, sort_keys=True))
            for kind, data in files.items():
                path = self._image(index, kind)
                temporary = path.with_name(f".{path.name}")
                temporary.write_bytes(data)
                temporary.rename(path)

    def show(self) -> None:
        """A grid of the first images; with a row each for what stands beside them."""
        shown = range(min(_SHOWN if len(self.kinds) == 1 else 8, len(self.captions)))
        rows = [(kind, torch.stack([self._read(index, kind) for index in shown])) for kind in self.kinds]
        if len(rows) == 1:
            grid = image_grid(rows[0][1], columns=min(6, len(shown)))
        else:
            grid = labelled_strip([(kind or "image", images) for kind, images in rows])
        grid.save(self.folder / "grid.png")

    def _encoded(self, drawn: Iterable[Sequence[Drawing]]) -> Iterator[tuple[int, dict[str, bytes], dict[str, Any]]]:
        with ThreadPoolExecutor() as pool:  # zlib works outside the interpreter's lock
            for part in drawn:
                files = pool.map(self._bytes, [image for _, images, _ in part for image in images.values()])
                for index, images, facts in part:
                    yield index, {kind: next(files) for kind in images}, facts

    def _bytes(self, image: Tensor) -> bytes:
        buffer = io.BytesIO()
        pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
        pixels.save(buffer, "JPEG" if self.form == "jpg" else "PNG", **_QUALITY[self.form])
        return buffer.getvalue()

    def _read(self, index: int, kind: str) -> Tensor:
        pixels = np.array(Image.open(self._image(index, kind)))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _shard(self, unit: Sequence[int]) -> Path:
        return self.folder / f"{self.units.index(list(unit)):06d}.tar"

    def _image(self, index: int, kind: str) -> Path:
        return self.folder / f"{index:06d}{kind and f'-{kind}'}.{self.form}"


def _short(values: Mapping[str, Any], key: str) -> str:
    text = json.dumps(values.get(key))
    return text if len(text) <= 40 else f"{text[:37]}..."
