"""What judging images costs: features beside the bare network, FID beside pytorch-fid's loop, precision and recall.

    python benchmarks/evaluation.py --images FOLDER --weights inception.pth
    python benchmarks/evaluation.py --precision-recall 50000,10000
    python benchmarks/evaluation.py --memory 100,2000,10000

The first times, alternating over rounds in one process, the Inception on batches that lie ready, the extraction of
features from the files, and the loop of pytorch-fid in a few lines: decode a batch, resize it, compute, one after the
other. Weights may be any with the shapes of the public file: time does not depend on them. The second draws features
of 2,048 numbers and says how long precision and recall take of them, and how far memory rises. The third takes FID
of so many images of 512 px, each number in a process of its own, by a stand-in for the network that costs next to
nothing and has as many features: how memory rises with the number of images is the same for any network.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from davae.data.image_list import ImageList, open_images
from davae.evaluate.distances.frechet import moments_of
from davae.evaluate.distances.precision_recall import precision_recall
from davae.evaluate.feature_scores import score_features
from davae.evaluate.hardware import hardware
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.spaces.inception import load
from davae.evaluate.spaces.space import FeatureSpace, Loading
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction, extract


def bare(space: FeatureSpace, count: int, batch: int) -> None:
    """The network alone, on inputs that lie ready."""
    inputs = torch.rand(batch, 3, 299, 299)
    with torch.inference_mode():
        for start in range(0, count, batch):
            space.compute(inputs[: min(batch, count - start)])


def ours(space: FeatureSpace, images: ImageList, batch: int) -> None:
    """Files to kept features."""
    with tempfile.TemporaryDirectory() as folder:
        extract(images, space, ["pool"], Extraction(batch, folder=Path(folder)))


def one_after_the_other(space: FeatureSpace, images: ImageList, paths: list[Path], batch: int) -> np.ndarray:
    """As pytorch-fid without workers: decode a batch, resize it on torch, compute, keep in memory."""
    features = []
    with torch.inference_mode():
        for start in range(0, len(paths), batch):
            decoded = [np.array(Image.open(path).convert("RGB")) for path in paths[start : start + batch]]
            inputs = [torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 for pixels in decoded]
            resized = [F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) for x in inputs]
            features.append(space.compute(2 * torch.cat(resized) - 1)["pool"].numpy())
    return np.concatenate(features).astype(np.float64)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Of a call: on the clock, and of all cores together, which others on the machine hardly change."""
    start, start_cores = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - start_cores


def time_features(arguments: argparse.Namespace) -> None:
    """The quickest round of each; the Frechet distance's moments as well."""
    space = load(Loading(arguments.weights, "pytorch-fid"))
    images = open_images(arguments.images)
    paths = [arguments.images / name for name in images.ids]
    count, batch = len(images), arguments.batch
    work: dict[str, Callable[[], object]] = {
        "network alone": lambda: bare(space, count, batch),
        "features from files": lambda: ours(space, images, batch),
        "pytorch-fid's loop": lambda: one_after_the_other(space, images, paths, batch),
    }
    best = dict.fromkeys(work, (float("inf"), float("inf")))
    bare(space, batch, batch)
    for _ in range(arguments.rounds):
        for name, call in work.items():
            best[name] = min(best[name], seconds(call))
    with tempfile.TemporaryDirectory() as folder:
        rows = extract(images, space, ["pool"], Extraction(batch, folder=Path(folder)))["pool"]
        best["mean and covariance"] = seconds(lambda: moments_of(rows))
    for name, (clock, cores) in best.items():
        print(f"{name:>22}  {clock:8.2f} s  {count / clock:8.1f} images/s  {cores:8.2f} s of all cores")


def time_precision_recall(sizes: str) -> None:
    """Seconds, and the rise of the highest resident memory."""
    samples, reference = (int(size) for size in sizes.split(","))
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        sets = [_on_disk(Path(folder) / f"{name}.npy", draw, n) for name, n in (("a", samples), ("b", reference))]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        elapsed, _ = seconds(lambda: precision_recall(*sets))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rise = (after - before) / 2**20
    print(f"precision and recall of {samples:,} x {reference:,}: {elapsed:.1f} s, {rise:.2f} GiB more")


def _on_disk(path: Path, draw: np.random.Generator, count: int) -> np.ndarray:
    kept = np.lib.format.open_memmap(path, "w+", np.float32, (count, 2048))
    for start in range(0, count, 1000):
        block = kept[start : start + 1000]
        block[:] = draw.standard_normal(block.shape, np.float32)
    kept.flush()
    return np.load(path, mmap_mode="r")


def measure_memory(counts: Sequence[int]) -> None:
    """Highest resident memory of FID of so many images against 100 of them, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                fresh.submit(_draw, Path(folder), count).result()
            with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                before, after, elapsed = fresh.submit(_frechet_distance, Path(folder), count).result()
            print(f"FID of {count:,} images: {after:,.0f} MiB at the most ({before:,.0f} before), {elapsed:.0f} s")


def _draw(folder: Path, count: int) -> None:
    """So many flat images of 512 px of slowly changing colours, of which some may be there."""
    place = folder / "images"
    place.mkdir(exist_ok=True)
    for number in range(len(list(place.iterdir())), count):
        colour = (number * 7 % 256, number // 256 * 11 % 256, number % 251)
        Image.new("RGB", (512, 512), colour).save(place / f"{number:06d}.jpg", comment=str(number))


def _frechet_distance(folder: Path, count: int) -> tuple[float, float, float]:
    """MiB before and at the most, and seconds, of what `davae evaluate --images` does."""
    torch.set_num_threads(1)
    before = _peak()
    start = time.perf_counter()
    images = open_images(folder / "images")
    assert len(images) == count
    extraction = Extraction(folder=folder / f"features-{count}")
    score_features(
        images,
        Reference("the first of them", FirstImages(images, 100)),
        feature_metrics(["fid"]),
        lambda name: stand_in(),
        extraction,
        "flat",
    )
    return before, _peak(), time.perf_counter() - start


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class FirstImages(ImageList):
    """The first images of a list."""

    def __init__(self, images: ImageList, count: int) -> None:
        self._images = images
        self.where, self.skipped = f"{images.where}, the first {count}", ()
        self.ids, self.sizes = images.ids[:count], images.sizes[:count]

    def content(self, index: int) -> bytes:
        """See `ImageList`."""
        return self._images.content(index)

    def decode(self, index: int, content: bytes) -> np.ndarray:
        """See `ImageList`."""
        return self._images.decode(index, content)


def stand_in() -> FeatureSpace:
    """Features as long as the Inception's of 4 pixels of an image."""
    network = torch.nn.Linear(12, 2048)

    def prepare(image: np.ndarray) -> np.ndarray:
        pixels = image[:: image.shape[0] // 2, :: image.shape[1] // 2].transpose(2, 0, 1)
        return pixels.astype(np.float32) / 255

    return FeatureSpace(
        name="inception",
        identity={"extractor": "stand-in"},
        network=network,
        lengths={"pool": 2048},
        prepare=prepare,
        compute=lambda inputs: {"pool": network(inputs.flatten(1))},
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--weights", help=".pth (the public file) or .safetensors; default: the cache's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision-recall", metavar="N,M", help="samples and reference")
    parser.add_argument("--memory", metavar="N,M,...", help="images of which FID is taken, in rising numbers")
    parser.add_argument("--threads", type=int, help="of torch")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure what the options ask for."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(json.dumps(hardware()))
    if arguments.images:
        time_features(arguments)
    if arguments.precision_recall:
        time_precision_recall(arguments.precision_recall)
    if arguments.memory:
        measure_memory([int(count) for count in arguments.memory.split(",")])


if __name__ == "__main__":
    main()
