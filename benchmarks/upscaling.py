"""Upscalers against each other: photographs at half size and back, and behind the embedded pair as a second stage.

    python benchmarks/upscaling.py --photographs FOLDER --with esrgan:x2/model.json --with esrgan:x4plus.pth
    python benchmarks/upscaling.py --pair --with esrgan:x2/model.json

Filters stand in every table; --with adds what `davae upscale --with` takes. Two tables:

    photographs   a whole image, cropped to even sides, is halved (--halving), rounded to 8 bits and enlarged again;
                  PSNR and SSIM are means over images, seconds those of enlarging one, after one to warm up;
                  processor seconds, summed over the cores, are what a busy machine changes less
    pair          --count images of the embedded pair, 64 px, settings and seeds of `davae demo`, enlarged to 128 px:
                  sliced Wasserstein distance x 1000 to as many held-out renderings, a column a level. "second
                  stage" and "cascade" are seconds an image; --upgraded adds an upgraded pair, from the same seeds
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from davae.backbones.pair import Pair
from davae.core.pixels import uint8_to_unit, unit_to_uint8
from davae.data.folder import IMAGE_SUFFIXES
from davae.data.splits import first
from davae.evaluate.hardware import hardware
from davae.evaluate.similarity import psnr, ssim
from davae.evaluate.swd import SWD
from davae.models.chunking import chunks
from davae.recipe import load_recipe
from davae.run.run import Run
from davae.sampling.class_sampler import ClassSampler
from davae.sampling.upscaling import Upscaler, open_upscaler
from davae.sampling.upscaling.filters import FILTERS

HALVINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "bicubic": lambda image: F.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True),
    "box": lambda image: F.avg_pool2d(image, 2),
}
"""How an image is made half as large: bicubic with antialiasing, or the mean of 2x2 pixels."""


def opened(arguments: argparse.Namespace) -> dict[str, Upscaler]:
    """By their names, filters first."""
    upscalers = [open_upscaler(spec) for spec in (*FILTERS, *arguments.specs)]
    return {upscaler.name: upscaler for upscaler in upscalers}


def photographs(
    folder: Path, upscalers: dict[str, Upscaler], halving: str, limit: int | None, crop: int | None
) -> list[dict[str, Any]]:
    """A row an upscaler."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[:limit]
    if not paths:
        raise SystemExit(f"There is no image in {folder}.")
    originals = [_cropped(path, crop) for path in paths]
    small = [unit_to_uint8(HALVINGS[halving](uint8_to_unit(image))) for image in originals]
    rows = []
    for name, upscaler in upscalers.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        upscaler(small[0], _size(originals[0]))
        scores, seconds, processor = [], 0.0, 0.0
        for image, half in zip(originals, small, strict=True):
            started, busy = time.perf_counter(), time.process_time()
            large = upscaler(half, _size(image))
            seconds, processor = seconds + time.perf_counter() - started, processor + time.process_time() - busy
            scores.append((psnr(large, image).item(), ssim(large, image).item()))
        decibels, similarity = np.mean(scores, axis=0)
        row = {"PSNR": float(decibels), "SSIM": float(similarity), "s an image": seconds / len(paths)}
        rows.append({"upscaler": name, **row, "processor s": processor / len(paths)})
    return rows


def _cropped(path: Path, crop: int | None) -> Tensor:
    """uint8 [1, 3, H, W], the sides even: the middle of `crop` px a side, or all of it."""
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    height, width = (min(side, crop or side) // 2 * 2 for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


@torch.no_grad()
def pair(upscalers: dict[str, Upscaler], count: int, upgraded: str | None) -> list[dict[str, Any]]:
    """A row an upscaler, and one of the upgraded pair."""
    recipe = load_recipe(Path(str(files("davae") / "recipes" / "demo.yaml")))
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(recipe, Path(scratch))
        real = first(run.data.test, count).images(range(count), recipe.image_size)
        base, seconds = _drawn(run.pair, recipe, count)
    size = (recipe.image_size, recipe.image_size)
    rows = []
    for name, upscaler in upscalers.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        upscaler(base[:1], size)
        started = time.perf_counter()
        large = torch.cat([upscaler(part, size) for part in base.split(upscaler.images_at_once(_size(base)))])
        second = (time.perf_counter() - started) / count
        rows.append(
            {"upscaler": name, **_distances(large, real), "second stage": second, "cascade": seconds + second}
        )
    if upgraded is not None:
        images, seconds = _drawn(Pair(upgraded), recipe, count)
        rows.append({"upscaler": "upgraded pair", **_distances(images, real), "cascade": seconds})
    return rows


def _drawn(source: Pair, recipe: Any, count: int) -> tuple[Tensor, float]:
    """Images with the demo's settings, and seconds an image."""
    sampler, images = ClassSampler(source.load(), recipe.sample, recipe.sample.labels), []
    sampler.images(sampler.latents([0]))
    started = time.perf_counter()
    for part in chunks(count, recipe.sample.batch_size):
        images.append(sampler.images(sampler.latents(part)))
    return torch.cat(images), (time.perf_counter() - started) / count


def _distances(images: Tensor, real: Tensor) -> dict[str, float]:
    return dict(SWD.measure({"images": images}, real, 0)["images"])


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table; the seconds of what has no second stage stay empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = [_shown(column, row.get(column)) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(column: str, value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    digits = {"PSNR": 2, "SSIM": 4}.get(column, 1 if "level" in column else 3)
    return f"{value:.{digits}f}"


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="images to halve and to enlarge")
    parser.add_argument(
        "--halving", choices=sorted(HALVINGS), default="bicubic", help="default: bicubic, antialiased"
    )
    parser.add_argument("--limit", type=int, help="photographs at most")
    parser.add_argument("--crop", type=int, help="the middle of photographs, pixels a side (default: all of them)")
    parser.add_argument("--pair", action="store_true", help="the embedded pair's images")
    parser.add_argument("--count", type=int, default=288, help="images of the pair (default: 288)")
    parser.add_argument(
        "--upgraded", metavar="PIPELINE", help="an upgraded pair beside it, as `davae demo` leaves one"
    )
    parser.add_argument("--with", dest="specs", action="append", default=[], metavar="SPEC", help="add an upscaler")
    parser.add_argument("--out", type=Path, help="also write the rows to this JSON file")
    arguments = parser.parse_args(given)
    if not arguments.photographs and not arguments.pair:
        parser.error("nothing to do: give --photographs FOLDER, --pair, or both")
    return arguments


def main(given: list[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse(given)
    upscalers, results = opened(arguments), {}
    if arguments.photographs:
        results["photographs"] = photographs(
            arguments.photographs, upscalers, arguments.halving, arguments.limit, arguments.crop
        )
    if arguments.pair:
        results["pair"] = pair(upscalers, arguments.count, arguments.upgraded)
    identities = {name: dict(upscaler.identity) for name, upscaler in upscalers.items()}
    print(json.dumps({"hardware": hardware(), "upscalers": identities}))
    for rows in results.values():
        print(table(rows), end="\n\n")
    if arguments.out:
        report = {"hardware": hardware(), "upscalers": identities, "given": vars(arguments), **results}
        arguments.out.write_text(json.dumps(report, indent=2, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
