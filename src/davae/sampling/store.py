"""Owner of a folder of generated images: what stands, what is missing, and of which settings it is.

The work is cut into units of consecutive images: a batch, or a tar shard. A unit is done or missing as a whole, so
that a stopped process goes on where it was, and several share the units.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from davae.core.files import replacing, sweep, write_text
from davae.core.state import found_json, write_json
from davae.data.drawn_folder import GRID, STORE
from davae.models.chunking import chunks
from davae.sampling.image_formats import IMAGE, GeneratedImage, ImageFiles, ImageFormat, NpzArchive, TarShards

FormatName = Literal["png", "jpg", "npz", "tar"]


class ImageStore:
    """Generated images on disk.

    Args:
        folder: of the store; need not exist.
        inputs: all that the images depend on, as JSON values.
        count: of the images.
        unit: images a unit.
        formats: in which images are kept; none keeps nothing but what stands beside them (latents). "png" and "jpg"
            are a file an image, "tar" a captioned shard a unit, "npz" one array of all, as FID tools read it.
        kinds: what is kept of each image: `IMAGE`, and names of what stands beside it.
        members: form of the images in tar shards.
        facts: whether a file of facts lies beside each image file.
        first: number of the first image; of tar shards, a multiple of `unit`.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, Any],
        count: int,
        *,
        unit: int,
        formats: Sequence[FormatName],
        kinds: Sequence[str] = (IMAGE,),
        members: Literal["png", "jpg"] = "png",
        facts: bool = False,
        first: int = 0,
    ) -> None:
        self.folder, self.inputs, self.count, self.kinds = folder, dict(inputs), count, tuple(kinds)
        self.units = [range(first + part.start, first + part.stop) for part in chunks(count, unit)]
        self._marker, self._names = folder / STORE, tuple(formats)
        files = {
            "png": ImageFiles(folder, "png", self.kinds, facts),
            "jpg": ImageFiles(folder, "jpg", self.kinds, facts),
        }
        self._files = next((files[name] for name in formats if name in files), None)
        self._known: dict[str, ImageFormat] = {
            **files,
            "tar": TarShards(folder, unit, members),
            "npz": NpzArchive(folder, count, self._files),
        }
        self._formats = [self._known[name] for name in formats]

    @property
    def stored_inputs(self) -> dict[str, Any] | None:
        """What the images that stand depend on; None where nothing stands, or nobody can say of what it is."""
        return found_json(self._marker, dict[str, Any])

    def begin(self) -> None:
        """Make the folder and say in it what its images are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        write_json(self._marker, self.inputs, indent=1, sort_keys=True)

    def discard(self, keep: int) -> None:
        """Remove images from number `keep` on, all in formats that are not asked for, and what sums them up."""
        for name, form in self._known.items():
            form.discard(keep if name in self._names else 0)
        (self.folder / GRID).unlink(missing_ok=True)

    def is_done(self, unit: Sequence[int]) -> bool:
        """Whether a unit stands in every format."""
        return all(form.has(unit) for form in self._formats)

    def missing(self, process: int = 0, num_processes: int = 1) -> list[range]:
        """Units of one of several processes that do not stand yet."""
        return [unit for unit in self.units[process::num_processes] if not self.is_done(unit)]

    def write(self, unit: Sequence[int], parts: Iterable[Sequence[GeneratedImage]]) -> None:
        """Keep a unit, which is drawn part by part."""
        if len(self._formats) > 1:
            parts = list(parts)
        for form in self._formats:
            form.write(unit, parts)

    def finish(self, captions: Sequence[str]) -> None:
        """Write what all images together make, and the list of what they are of."""
        files = self._files
        named = [{} if files is None else {"file_name": files.path(index).name} for index in range(self.count)]
        rows = [{**name, "text": text} for name, text in zip(named, captions, strict=True)]
        write_text(self.folder / "metadata.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
        for form in self._formats:
            form.finish(self.units)

    def read(self, indices: Iterable[int], kind: str = IMAGE) -> Tensor:
        """Images that were kept as files: uint8 [N, 3, H, W]."""
        assert self._files is not None
        return torch.stack([self._files.read(index, kind) for index in indices])

    def show(self, grid: Image.Image) -> None:
        """Keep a picture of the first images."""
        with replacing(self.folder / GRID) as temporary:
            grid.save(temporary, "PNG")
