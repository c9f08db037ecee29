"""What judges of `solids` say of renderings, of the same scenes with less than their pixels, and of a pair's images.

    python benchmarks/judge.py runs/solids-judge/judge
    python benchmarks/judge.py JUDGE ... --pair PAIR --images 540 --guidance 1.5 3

A table a judge: accuracy, fineness, and the Frechet distance to other renderings at 128 px.
Drawn images are enlarged bicubically to 128 px, as the baseline of a run is.
"""

import argparse
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import davae
from davae.core.pixels import enlarge, uint8_to_unit, unit_to_uint8
from davae.data.image_list import ArrayImages
from davae.data.solids import SolidsSource
from davae.evaluate.feature_scores import score_features
from davae.evaluate.generation import JudgedSet
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.results import INTERVAL
from davae.evaluate.spaces import solids
from davae.evaluate.spaces.space import Loading
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction
from davae.run.origins import embedded_pair
from davae.sampling.class_sampler import ClassSampler
from davae.sampling.settings import SamplerSettings

SIDE = 128
METRICS = feature_metrics(["fd-solids", "solids-accuracy", "solids-fineness"])


def renderings(count: int) -> dict[str, JudgedSet]:
    """The same scenes at full size, rendered at half of it and enlarged, and reduced to half of it and enlarged."""
    source = SolidsSource(count, seed=1_000_003)
    indices, asked = list(range(count)), source.captions
    whole, half = source.images(indices, SIDE), source.images(indices, SIDE // 2)
    reduced = torch.nn.functional.interpolate(whole.float() / 255, size=SIDE // 2, mode="bicubic", antialias=True)
    return {
        "rendered at 128 px": JudgedSet(whole, asked),
        "rendered at 64 px, enlarged": JudgedSet(enlarged(uint8_to_unit(half)), asked),
        "reduced to 64 px, enlarged": JudgedSet(enlarged(reduced), asked),
    }


def drawn(folder: str, count: int, guidance: float, steps: int, batch: int = 90) -> JudgedSet:
    """Images of a class-conditional pair of solids, a class after the other."""
    names = SolidsSource(1).class_names
    pipeline = davae.LightningDiTPipeline.from_pretrained(folder)
    sampler = ClassSampler(pipeline, SamplerSettings(steps=steps, guidance_scale=guidance, precision="bf16"))
    parts = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    images = torch.cat([sampler.images(sampler.latents(part)) for part in parts])
    if images.shape[-1] < SIDE:
        images = enlarged(uint8_to_unit(images))
    return JudgedSet(images, [names[label] for label in sampler.labels(range(count))])


def enlarged(images: Tensor) -> Tensor:
    """[N, 3, S, S] in [0, 1] -> uint8 [N, 3, 128, 128]."""
    return unit_to_uint8(enlarge(images, SIDE))


def report(judge: str, sets: Mapping[str, JudgedSet], real: Tensor) -> None:
    """Print a line a number."""
    space = solids.load(Loading(None if judge == "embedded" else judge))
    reference = Reference("renderings", listed(real))
    print(f"\n{judge}")
    for name, part in sets.items():
        measured = score_features(
            listed(part.images), reference, METRICS, lambda _: space, Extraction(), name, asked=part.asked
        )
        cells = []
        for item in measured:
            low, high = item.protocol[INTERVAL]
            cells.append(f"{item.column} {item.value:.3f} ({low:.3f} to {high:.3f})")
        print(f"  {name}: {', '.join(cells)}", flush=True)


def listed(images: Tensor) -> ArrayImages:
    """Images as judges take them."""
    return ArrayImages(images.permute(0, 2, 3, 1).contiguous().numpy(), "images")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judges", nargs="+", help="folders that davae train-judge left, or 'embedded'")
    parser.add_argument("--pair", default=str(embedded_pair()), help="pair whose images are judged")
    parser.add_argument("--images", type=int, default=540, help="of each set")
    parser.add_argument("--guidance", type=float, nargs="*", default=[1.5, 3.0], help="of the drawn sets")
    parser.add_argument("--steps", type=int, default=20, help="of drawing")
    return parser.parse_args(arguments)


def main() -> None:
    """Judge all sets by each judge."""
    options = parse()
    sets = renderings(options.images)
    for guidance in options.guidance:
        sets[f"drawn, guidance {guidance:g}"] = drawn(options.pair, options.images, guidance, options.steps)
    others = SolidsSource(options.images, seed=2_000_003)
    real = others.images(list(range(options.images)), SIDE)
    for judge in options.judges:
        report(judge, sets, real)


if __name__ == "__main__":
    main()
