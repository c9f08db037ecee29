"""The paper's table of alignment weights, for any base and images: one training a cell, then one row each.

    python benchmarks/alignment.py taef2-imagenette --judge FOLDER \\
        --detail 32,64,96 --weights 0,0.1,0.5,1.0 --set pair=taef2 --set data.path=FOLDER --set tokenizer.steps=340

A run is named after its cell and goes on where it was stopped; a finished one is only measured. PSNR and SSIM are of
the whole images in --judge; the sliced Wasserstein distance between reconstructions and originals stands in for rFID,
on the recipe's test images; r is the correlation of the grouped detail mean with the base.
"""

import argparse
import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import davae
from davae.core.observer import Silent
from davae.core.pixels import signed_to_unit, uint8_to_signed, unit_to_uint8
from davae.data.hold_out import HoldOut, first
from davae.data.image_source import ImageSource
from davae.data.splits import open_train_test
from davae.evaluate.agreement import alignment
from davae.evaluate.analysis import gather
from davae.evaluate.swd import SlicedWasserstein
from davae.models.chunking import chunks
from davae.recipe import Recipe, load_recipe
from davae.tools.autoencoders import evaluate_autoencoders

BATCH = 16


def train(arguments: argparse.Namespace, name: str, detail: str, weight: str) -> None:
    """One cell, by the command line, so that it is launched and resumed as any run."""
    command = [*shlex.split(arguments.launch), "train-tokenizer", arguments.recipe]
    settings = [f"name={name}", f"tokenizer.detail_channels={detail}", f"tokenizer.align_weight={weight}"]
    for setting in [*arguments.set, *settings]:
        command += ["--set", setting]
    command += ["--runs-dir", str(arguments.runs_dir)]
    subprocess.run(command, check=True)


def test_images(recipe: Recipe, size: int, count: int) -> ImageSource:
    """The first of the images that the recipe never trains on."""
    data = recipe.data
    assert data is not None
    return first(
        open_train_test(data.kind, data.path, size, HoldOut(count=data.test_count), data.count, data.seed)[1], count
    )


@torch.no_grad()
def distances(autoencoder: davae.AutoencoderDA, source: ImageSource, size: int) -> dict[int, float]:
    """Sliced Wasserstein distance x 1000 of reconstructions to originals, level by level."""
    swd, ids = SlicedWasserstein(size), list(source.ids)
    originals, rebuilt = [], []
    for indices in chunks(len(source), BATCH):
        images = source.images(indices, size)
        base, mean, _ = autoencoder.moments(uint8_to_signed(images))
        originals.append(images)
        rebuilt.append(unit_to_uint8(signed_to_unit(autoencoder.decode(autoencoder.store(base, mean)).sample)))
    return swd.distance(swd.describe(rebuilt, ids), swd.describe(originals, ids))


def correlation(autoencoder: davae.AutoencoderDA, source: ImageSource, size: int) -> float:
    """Of the grouped detail mean with the base, mean over base channels."""
    statistics, _ = gather(autoencoder, source, size, BATCH, Silent())
    return float(alignment(statistics.pair).channels.mean())


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--judge", type=Path, required=True, help="folder of images never trained on")
    parser.add_argument("--detail", default="32,64,96")
    parser.add_argument("--weights", default="0,0.1,0.5,1.0")
    parser.add_argument("--size", type=int, default=224, help="side of the test images, pixels")
    parser.add_argument("--count", type=int, default=256, help="test images")
    parser.add_argument("--launch", default=f"{sys.executable} -m davae", help="how davae is started")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(words)


def main(arguments: argparse.Namespace) -> None:
    """Train, measure, print a Markdown table."""
    recipe = load_recipe(arguments.recipe, arguments.set)
    cells = {
        f"{recipe.name}-d{detail}-w{weight}": (detail, weight)
        for detail, weight in itertools.product(arguments.detail.split(","), arguments.weights.split(","))
    }
    for name, (detail, weight) in cells.items():
        train(arguments, name, detail, weight)
    folders = {name: arguments.runs_dir / name / "tokenizer" for name in cells}
    results = evaluate_autoencoders([str(folder) for folder in folders.values()], arguments.judge)
    scores = {(item.row, item.column): item.value for item in results.measurements}
    rows = dict.fromkeys(item.row for item in results.measurements)
    source = test_images(recipe, arguments.size, arguments.count)
    print("| D | weight | PSNR | SSIM | SWD, finest | SWD, next | r |\n|---|---|---|---|---|---|---|")
    for row, (name, (detail, weight)) in zip(rows, cells.items(), strict=False):
        autoencoder = davae.AutoencoderDA.from_pretrained(folders[name]).eval()
        finest, following, *_ = distances(autoencoder, source, arguments.size).values()
        r = correlation(autoencoder, source, arguments.size)
        psnr, ssim = scores[row, "PSNR"], scores[row, "SSIM"]
        print(
            f"| {detail} | {weight} | {psnr:.2f} | {ssim:.3f} | {finest:.1f} | {following:.1f} | {r:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(parse())
