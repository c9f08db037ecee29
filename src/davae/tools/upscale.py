"""`davae upscale`: every image of a set at a larger size, in a folder, under the same name.

It is the second stage of the cascades that an upgraded pair is compared with, and resumable as drawing is.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from davae.core.files import bytes_digest, replacing, sweep
from davae.core.observer import Observer, Silent
from davae.core.state import write_json
from davae.data.drawn_folder import ENLARGED
from davae.data.image_list import ImageList, open_images
from davae.run.accelerator import PATIENCE
from davae.sampling.upscaling import Upscaler, refusal
from davae.sampling.upscaling.upscaler import Size
from davae.train.interrupt import terminable

_SHOWN = 10


@dataclass(frozen=True)
class _Small:
    """An image to enlarge: uint8 [3, h, w]."""

    name: str
    pixels: Tensor

    @property
    def size(self) -> Size:
        return self.pixels.shape[-2], self.pixels.shape[-1]


def upscale(source: Path, out: Path, size: int, upscaler: Upscaler, observer: Observer | None = None) -> Path:
    """Enlarge images. Run again, it makes what is missing, and what changed, anew.

    Several processes (accelerate, torchrun) share the work.

    Args:
        source: folder of images, tar shards, or an npz with `arr_0`; sub-folders are kept, names with a leading dot
            are passed over.
        out: new folder, or one that the same call began; `a/b.jpg` becomes `a/b.png` in it.
        size: of the shorter side in pixels; the shape is kept.
        upscaler: what enlarges.
        observer: who watches.

    Returns:
        `out`.

    Raises:
        ValueError: the folders cannot be used, or images cannot be read or enlarged to that size. Such images are
            named, and all others are there when it is raised.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    observer = (observer or Silent()) if state.is_main_process else Silent()
    if size < 1:
        raise ValueError(f"Images need a size of at least 1 px; got {size}.")
    if out.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{out} lies in {source}, whose images are enlarged. Give a folder beside it.")
    images = open_images(source)
    numbers = _numbers(images)
    inputs = {
        "upscaler": dict(upscaler.identity),
        "size": size,
        "images": {name: bytes_digest(images.content(i)).hex() for name, i in numbers.items()},
    }
    changed = _changed(out, inputs)
    state.wait_for_everyone()
    if state.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        sweep(out)
        for name in changed:
            (out / name).unlink(missing_ok=True)
        write_json(out / ENLARGED, inputs, indent=1)
    state.wait_for_everyone()
    with terminable():
        mine = list(numbers)[state.process_index :: state.num_processes]  # before it is known what stands
        missing = {name: numbers[name] for name in mine if not (out / name).exists()}
        left_out = [*images.unusable] if state.is_main_process else []
        for name, reason in left_out[:_SHOWN]:
            observer.say(f"left out {name}: {reason}")
        left_out += _enlarge(images, missing, out, size, upscaler, observer) if missing else []
    if left_out:
        name, reason = left_out[0]
        raise ValueError(
            f"{len(left_out)} of {len(images) + len(images.unusable)} images were left out, the first {name}: "
            f"{reason}. {out} has the others."
        )
    return out


def _numbers(images: ImageList) -> dict[str, int]:
    """Name of each image to make -> which one it is of."""
    found: dict[str, int] = {}
    for number, name in enumerate(images.ids):
        made = PurePosixPath(name).with_suffix(".png").as_posix()
        if made in found:
            raise ValueError(
                f"{images.ids[found[made]]} and {name} of {images.where} would both become {made}. Rename one of "
                f"them."
            )
        found[made] = number
    return found


def _changed(out: Path, inputs: dict) -> list[str]:
    """Images that stand, and whose originals are no longer what they were.

    Raises:
        ValueError: the folder holds images of another upscaler, size or set, or something else.
    """
    marker = out / ENLARGED
    if not marker.exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(
                f"{out} holds something that 'davae upscale' did not write: there is no {ENLARGED} in it. "
                f"Give a new or an empty folder."
            )
        return []
    before = json.loads(marker.read_text(encoding="utf-8"))
    old, new = ({**of["upscaler"], "size": of["size"]} for of in (before, inputs))
    if differing := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        described = "; ".join(
            f"{key}: {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}" for key in differing
        )
        raise ValueError(f"{out} holds images of other settings ({described}). Give another folder.")
    if gone := sorted(name for name in before["images"] if name not in inputs["images"]):
        raise ValueError(
            f"{out} has images whose originals are gone: {len(gone)}, the first {gone[0]}. Give another folder."
        )
    return [name for name, digest in before["images"].items() if inputs["images"][name] != digest]


def _enlarge(
    images: ImageList, numbers: dict[str, int], out: Path, size: int, upscaler: Upscaler, observer: Observer
) -> list[tuple[str, str]]:
    """Make some of the images; (name, reason) of those that cannot be made."""
    left_out: list[tuple[str, str]] = []
    seconds = done = 0.0
    observer.begin(f"upscale: {upscaler.name}", len(numbers))
    for group in _groups(_usable(images, numbers, size, upscaler, observer, left_out), upscaler):
        started = time.perf_counter()
        large = upscaler(torch.stack([image.pixels for image in group]), _target(group[0].size, size))
        seconds += time.perf_counter() - started
        for small, image in zip(group, large, strict=True):
            with replacing(out / small.name) as temporary:
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, "PNG")
        done += len(group)
        observer.advance(int(done) + len(left_out))
    observer.end()
    if done:
        observer.say(f"{upscaler.name}: {seconds / done:.3g} s an image, reading and writing left out")
    return left_out


def _usable(
    images: ImageList,
    numbers: dict[str, int],
    size: int,
    upscaler: Upscaler,
    observer: Observer,
    left_out: list[tuple[str, str]],
) -> Iterator[_Small]:
    """The images that can be enlarged; the others are named and put into `left_out`."""
    for name, number in numbers.items():
        if reason := refusal(upscaler, images.sizes[number], _target(images.sizes[number], size)):
            left_out.append((images.ids[number], reason))
            if len(left_out) <= _SHOWN:
                observer.say(f"left out {images.ids[number]}: {reason}")
            continue
        pixels = np.require(images.decode(number, images.content(number)), requirements="W")
        yield _Small(name, torch.from_numpy(pixels).permute(2, 0, 1))


def _groups(images: Iterator[_Small], upscaler: Upscaler) -> Iterator[Sequence[_Small]]:
    """Images of one size each, as many as the upscaler takes at once; what waits never comes to more than that."""
    waiting: dict[Size, list[_Small]] = {}
    for image in images:
        waiting.setdefault(image.size, []).append(image)
        shares = {size: len(group) / upscaler.images_at_once(size) for size, group in waiting.items()}
        if sum(shares.values()) >= 1:
            yield waiting.pop(max(shares, key=lambda size: shares[size]))
    yield from waiting.values()


def _target(have: Size, size: int) -> Size:
    """Height and width with `size` pixels on the shorter side."""
    height, width = (round(side * size / min(have)) for side in have)
    return height, width
