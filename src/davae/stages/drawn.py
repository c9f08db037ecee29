"""Owner of samples/: drawn latents in shards, a PNG an image, and the npz that FID tools read."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from davae.data.cache_files import save_shard
from davae.recipe import SampleConfig
from davae.stages.drawing import batches

KEPT_BY = ("count", "png", "npz")
"""Settings that change no image: what stands is kept under others."""


class Drawn:
    """What a section `sample` draws, on disk.

    A shard of latents is a batch of images. Images follow from stored latents, so those that are missing are decoded
    and never drawn again.

    Args:
        folder: samples/ of a run.
        config: see `SampleConfig`.
        inputs: all that the images depend on, as JSON values.
    """

    def __init__(self, folder: Path, config: SampleConfig, inputs: Mapping[str, Any]) -> None:
        self.folder, self.config, self.inputs = folder, config, inputs
        self.batches = batches(config.count, config.batch_size)
        self.npz = folder / "images.npz"
        self._marker = folder / "inputs.json"

    def prepare(self) -> None:
        """Drop what other settings drew; keep what an interrupted run of these settings left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self._marked()
        if before == self.inputs:
            return
        is_kept = before is not None and _drawing(before) == _drawing(self.inputs)
        rows = {_shard(batch): len(batch) for batch in self.batches} if is_kept else {}
        for shard in self.folder.glob("latents-*.safetensors"):
            if shard.name not in rows or rows[shard.name] != _rows(shard):
                shard.unlink()
        for file in (*self.folder.glob("[0-9]*.png"), *self.folder.glob("images-*.safetensors")):
            if not (is_kept and self.config.png and file.suffix == ".png" and int(file.stem) < self.config.count):
                file.unlink()
        self.npz.unlink(missing_ok=True)
        (self.folder / "grid.png").unlink(missing_ok=True)
        self._marker.write_text(json.dumps(self.inputs, sort_keys=True))

    def has_latents(self, batch: Sequence[int]) -> bool:
        """Whether the latents of a batch are drawn."""
        return (self.folder / _shard(batch)).exists()

    def has_images(self, batch: Sequence[int]) -> bool:
        """Whether the images of a batch are stored in every form that is asked for."""
        if self.config.png:
            return all(self._png(index).exists() for index in batch)
        return not self.config.npz or self.npz.exists() or (self.folder / _pixels(batch)).exists()

    def latents(self, batch: Sequence[int]) -> Tensor:
        """Stored latents of a batch: float32 [B, K, h, w]."""
        return load_file(self.folder / _shard(batch))["latent"].float()

    def first_latents(self, count: int) -> Iterator[Tensor]:
        """Latents of images 0 .. count - 1, shard by shard."""
        return (self.latents(batch)[: count - batch[0]] for batch in self.batches if batch[0] < count)

    def store_latents(self, batch: Sequence[int], latents: Tensor) -> Tensor:
        """Keep the latents of a batch in half precision; returns them as they can be read again."""
        stored = latents.half().cpu()
        save_shard({"latent": stored}, self.folder / _shard(batch))
        return stored.float()

    def store_images(self, batch: Sequence[int], images: Tensor) -> None:
        """Keep uint8 images [B, 3, H, W] of a batch in the form that is asked for."""
        pixels = images.permute(0, 2, 3, 1).contiguous()
        if self.config.png:
            with ThreadPoolExecutor() as pool:  # zlib works outside the interpreter's lock
                list(pool.map(self._save_png, batch, pixels.numpy()))
        elif self.config.npz:
            save_shard({"image": pixels}, self.folder / _pixels(batch))

    def finish(self, conditions: Sequence[str]) -> None:
        """Write what all images together make: the npz and the list of what they are of."""
        rows = [
            {**({"file_name": self._png(index).name} if self.config.png else {}), "text": text}
            for index, text in enumerate(conditions)
        ]
        (self.folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if self.config.npz and not self.npz.exists():
            write_npz(self.npz, map(self._read, self.batches), self.config.count)
        for file in self.folder.glob("images-*.safetensors"):
            file.unlink()

    def require_all(self) -> None:
        """Refuse to be read before all latents of these settings are drawn.

        Raises:
            ValueError: there are none, those of other settings, or not all.
        """
        if self._marked() != self.inputs:
            raise ValueError(
                f"{self.folder} does not hold samples of these settings. Run 'davae sample RECIPE' first."
            )
        drawn = sum(len(batch) for batch in self.batches if self.has_latents(batch))
        if drawn != self.config.count:
            raise ValueError(
                f"{self.folder} holds {drawn} of {self.config.count} samples. "
                f"Run 'davae sample RECIPE' to draw the others."
            )

    def _marked(self) -> Any:
        return json.loads(self._marker.read_text()) if self._marker.exists() else None

    def _png(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def _save_png(self, index: int, pixels: np.ndarray) -> None:
        path = self._png(index)
        temporary = path.with_name(f".{path.name}")
        Image.fromarray(pixels).save(temporary)
        temporary.rename(path)

    def _read(self, batch: Sequence[int]) -> np.ndarray:
        """Stored images of a batch: uint8 [B, H, W, 3]."""
        if not self.config.png:
            return load_file(self.folder / _pixels(batch))["image"].numpy()
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(lambda index: np.asarray(Image.open(self._png(index))), batch)))


def write_npz(path: Path, parts: Iterable[np.ndarray], count: int) -> None:
    """Stream images into an npz with the one array `arr_0`, as guided-diffusion's evaluator reads it.

    No more than a part is in memory; the file is renamed when it is complete.

    Args:
        path: of the file.
        parts: uint8 [N, H, W, 3] each.
        count: images over all parts; an array says its size before its contents.

    Raises:
        ValueError: the parts hold another number of images.
    """
    temporary, rows = path.with_name(f".{path.name}"), 0
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
        temporary.unlink()
        raise ValueError(f"{path} was to hold {count} images; got {rows}. Run 'davae sample RECIPE' again.")
    temporary.rename(path)


def _drawing(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that an image itself depends on."""
    return {**inputs, "sample": {key: value for key, value in inputs["sample"].items() if key not in KEPT_BY}}


def _rows(shard: Path) -> int:
    with safe_open(shard, framework="pt") as file:
        return file.get_slice("latent").get_shape()[0]


def _shard(batch: Sequence[int]) -> str:
    return f"latents-{batch[0]:06d}.safetensors"


def _pixels(batch: Sequence[int]) -> str:
    return f"images-{batch[0]:06d}.safetensors"
