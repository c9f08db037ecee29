"""How long a set of images takes to open, and the memory that it then holds.

    python benchmarks/opening.py [--images 200000] [--kind shards] [--folder DIR]

Makes a set of tiny images (8x8 pixels, about 75 bytes each), as captioned tar shards of 1,000 or as class folders of
as many, then opens and splits it three times, each in a process of its own: first without what the cache folder
keeps, then twice with it. Columns: seconds of `open_train_test` without imports, and of the processor in them; growth
of the resident memory since the imports, at the end and at its peak, in bytes an image.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from davae.data.shard_writer import ShardWriter
from davae.evaluate.hardware import hardware

SHARD = 1000
"""Images in a shard or a folder."""


def picture(number: int) -> bytes:
    """An image that no other number has."""
    image, buffer = Image.new("RGB", (8, 8)), io.BytesIO()
    image.putpixel((0, 0), (number & 255, number >> 8 & 255, number >> 16))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make(folder: Path, images: int, kind: str) -> None:
    """Write the set."""
    folder.mkdir(exist_ok=True)
    for first in range(0, images, SHARD):
        members = {f"{number:08d}": number for number in range(first, min(first + SHARD, images))}
        if kind == "shards":
            with ShardWriter(folder / f"{first:08d}.tar") as writer:
                for key, number in members.items():
                    caption = f"picture {number} of a very small thing on a dark ground"
                    writer.write(key, {"png": picture(number), "txt": caption, "cls": str(number % 1000)})
        else:
            (folder / f"{first:08d}").mkdir(parents=True)
            for key, number in members.items():
                (folder / f"{first:08d}" / f"{key}.png").write_bytes(picture(number))


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_once(folder: Path) -> dict[str, float]:
    """Seconds, and bytes an image, of an opening in this process."""
    from davae.data.splits import open_train_test

    before, started, worked = resident(), time.perf_counter(), time.process_time()
    train, test = open_train_test("auto", str(folder), 8, 512, 0, 0)
    identity = train.fingerprint
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    images = len(train) + len(test)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held, most = ((size - before) / images for size in (resident(), peak))
    return {
        "images": images,
        "seconds": seconds,
        "processor": worked,
        "held": held,
        "peak": most,
        "identity": identity,
    }


def measure(folder: Path, images: int, kind: str) -> list[dict[str, float]]:
    """Three openings of a new set, each in a fresh process."""
    make(folder / "set", images, kind)
    command = [sys.executable, __file__, "--open", str(folder / "set")]
    environment = {**os.environ, "DAVAE_CACHE": str(folder / "cache")}
    return [
        json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout) for _ in range(3)
    ]


def main() -> int:
    """Make, measure, print, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--kind", choices=["shards", "folder"], default="shards")
    parser.add_argument("--folder", type=Path, help="where the set is made for a while; a temporary one without it")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open is not None:
        print(json.dumps(open_once(arguments.open)))
        return 0
    print(json.dumps(hardware()))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), arguments.images, arguments.kind)
    print("| opening | seconds | processor | held, bytes an image | at the peak |\n|---|---|---|---|---|")
    for name, row in zip(("first", "second", "third"), rows, strict=True):
        print(f"| {name} | {row['seconds']:.2f} | {row['processor']:.2f} | {row['held']:.0f} | {row['peak']:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
