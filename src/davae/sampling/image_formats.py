"""The forms in which generated images are kept: a file each, captioned tar shards, or one array for FID tools."""

import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from davae.core.files import replacing, write_text
from davae.core.state import found_json
from davae.core.tensor_files import load_tensors
from davae.data.cache_files import save_shard
from davae.data.shard_writer import ShardWriter
from davae.sampling.whole_files import is_whole

IMAGE = ""
"""Kind of the image itself. Others ("preview", "baseline") stand beside it under names of their own."""
_NUMBERED = re.compile(r"(\d{6,})(-\w+)?")
_QUALITY: dict[str, dict[str, int]] = {"png": {"compress_level": 6}, "jpg": {"quality": 95, "subsampling": 0}}


@dataclass(frozen=True)
class GeneratedImage:
    """An image to keep.

    Args:
        index: number of the image.
        kinds: kind -> uint8 image [3, H, W].
        caption: what it is of.
        facts: what else is known of it, as JSON values.
    """

    index: int
    kinds: Mapping[str, Tensor]
    caption: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class ImageFormat(Protocol):
    """A form. A unit is a run of consecutive images; it is there when all its files are there and whole."""

    def has(self, unit: Sequence[int]) -> bool:
        """Whether a unit stands."""

    def write(self, unit: Sequence[int], parts: Iterable[Sequence[GeneratedImage]]) -> None:
        """Keep a unit, which comes part by part."""

    def finish(self, units: Sequence[Sequence[int]]) -> None:
        """Make what needs all units."""

    def discard(self, keep: int) -> None:
        """Remove what holds images from number `keep` on."""


class ImageFiles:
    """A file an image, `000000.png`; `000000-preview.png` beside it, and `000000.json` where facts are kept."""

    def __init__(self, folder: Path, suffix: Literal["png", "jpg"], kinds: Sequence[str], facts: bool) -> None:
        self.folder, self.suffix, self.kinds, self.facts = folder, suffix, kinds, facts

    def path(self, index: int, kind: str = IMAGE) -> Path:
        """File of an image."""
        return self.folder / f"{index:06d}{kind and f'-{kind}'}.{self.suffix}"

    def has(self, unit: Sequence[int]) -> bool:
        """See `ImageFormat`."""
        return all(is_whole(self.path(index, kind)) for index in unit for kind in self.kinds) and not (
            self.facts and any(found_json(self._facts(index), dict[str, Any]) is None for index in unit)
        )

    def write(self, unit: Sequence[int], parts: Iterable[Sequence[GeneratedImage]]) -> None:
        """See `ImageFormat`."""
        for image, files in _encoded(parts, self.suffix):
            if self.facts:
                write_text(self._facts(image.index), json.dumps(image.facts, sort_keys=True))
            for kind, data in files.items():
                with replacing(self.path(image.index, kind)) as temporary:
                    temporary.write_bytes(data)

    def finish(self, units: Sequence[Sequence[int]]) -> None:
        """See `ImageFormat`."""

    def discard(self, keep: int) -> None:
        """See `ImageFormat`."""
        for file in self.folder.glob(f"[0-9]*.{self.suffix}"):
            match = _NUMBERED.fullmatch(file.stem)
            if match is not None and int(match[1]) >= keep:
                file.unlink()
                if self.facts:
                    self._facts(int(match[1])).unlink(missing_ok=True)

    def read(self, index: int, kind: str = IMAGE) -> Tensor:
        """A kept image: uint8 [3, H, W]."""
        return torch.from_numpy(np.array(Image.open(self.path(index, kind)))).permute(2, 0, 1)

    def _facts(self, index: int) -> Path:
        return self.folder / f"{index:06d}.json"


class TarShards:
    """A captioned shard a unit, `000000.tar`, in the WebDataset layout: image, `.txt` and `.json` a sample."""

    def __init__(self, folder: Path, unit: int, suffix: Literal["png", "jpg"]) -> None:
        self.folder, self._unit, self._suffix = folder, unit, suffix

    def has(self, unit: Sequence[int]) -> bool:
        """See `ImageFormat`."""
        return is_whole(self._path(unit))

    def write(self, unit: Sequence[int], parts: Iterable[Sequence[GeneratedImage]]) -> None:
        """See `ImageFormat`."""
        with ShardWriter(self._path(unit)) as shard:
            for image, files in _encoded(parts, self._suffix):
                members = {f"{kind}.{self._suffix}".lstrip("."): data for kind, data in files.items()}
                shard.write(f"{image.index:09d}", {**members, "txt": image.caption, "json": image.facts})

    def finish(self, units: Sequence[Sequence[int]]) -> None:
        """See `ImageFormat`."""

    def discard(self, keep: int) -> None:
        """See `ImageFormat`. A last shard of fewer images goes as well: its name does not say how many it holds."""
        for file in self.folder.glob("[0-9]*.tar"):
            match = _NUMBERED.fullmatch(file.stem)
            if match is not None and (int(match[1]) + 1) * self._unit > keep:
                file.unlink()

    def _path(self, unit: Sequence[int]) -> Path:
        return self.folder / f"{unit[0] // self._unit:06d}.tar"


class NpzArchive:
    """One array `arr_0` of all images, uint8 [N, H, W, 3], as guided-diffusion's evaluator reads it.

    Until all are there they wait in the image files, or in safetensors shards of their own where there are none.
    """

    def __init__(self, folder: Path, count: int, files: ImageFiles | None) -> None:
        self.path, self._count, self._files = folder / "images.npz", count, files

    def has(self, unit: Sequence[int]) -> bool:
        """See `ImageFormat`."""
        if self._files is not None:
            return self._files.has(unit)
        return is_whole(self.path) or is_whole(self._waiting(unit))

    def write(self, unit: Sequence[int], parts: Iterable[Sequence[GeneratedImage]]) -> None:
        """See `ImageFormat`."""
        if self._files is None:
            images = torch.stack([image.kinds[IMAGE] for part in parts for image in part])
            save_shard({"image": images.permute(0, 2, 3, 1).contiguous()}, self._waiting(unit))

    def finish(self, units: Sequence[Sequence[int]]) -> None:
        """See `ImageFormat`."""
        if not is_whole(self.path):
            write_npz(self.path, map(self._read, units), self._count)
        self._discard_waiting()

    def discard(self, keep: int) -> None:
        """See `ImageFormat`. The array is of one number of images and goes in any case."""
        self.path.unlink(missing_ok=True)
        self._discard_waiting()

    def _read(self, unit: Sequence[int]) -> NDArray[np.uint8]:
        if self._files is None:
            return load_tensors(self._waiting(unit))["image"].numpy()
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self._files.read, unit))
        return torch.stack(images).permute(0, 2, 3, 1).numpy()

    def _discard_waiting(self) -> None:
        for file in self.path.parent.glob("images-*.safetensors"):
            file.unlink()

    def _waiting(self, unit: Sequence[int]) -> Path:
        return self.path.with_name(f"images-{unit[0]:06d}.safetensors")


def write_npz(path: Path, parts: Iterable[NDArray[np.uint8]], count: int) -> None:
    """Stream images into an npz with the one array `arr_0`; no more than a part is in memory.

    Args:
        path: of the file.
        parts: uint8 [N, H, W, 3] each.
        count: images over all parts; an array says its size before its contents.

    Raises:
        ValueError: the parts hold another number of images.
    """
    rows = 0
    with replacing(path) as temporary:
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as file,
        ):
            for part in parts:
                if rows == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *part.shape[1:])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(part, dtype=np.uint8).data)
                rows += len(part)
        if rows != count:
            raise ValueError(f"{path} was to hold {count} images; got {rows}. Draw the missing ones first.")


def _encoded(
    parts: Iterable[Sequence[GeneratedImage]], suffix: str
) -> Iterator[tuple[GeneratedImage, dict[str, bytes]]]:
    """Images with the bytes of their files, a part at a time on several threads: zlib works outside the lock."""
    with ThreadPoolExecutor() as pool:
        for part in parts:
            pixels = [kind for image in part for kind in image.kinds.values()]
            files = pool.map(partial(_bytes, suffix=suffix), pixels)
            for image in part:
                yield image, {kind: next(files) for kind in image.kinds}


def _bytes(image: Tensor, suffix: str) -> bytes:
    buffer = io.BytesIO()
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    pixels.save(buffer, "JPEG" if suffix == "jpg" else "PNG", **_QUALITY[suffix])
    return buffer.getvalue()
