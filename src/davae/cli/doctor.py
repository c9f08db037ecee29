"""`davae doctor`."""

import argparse

from davae.cli.grammar import Verb, path
from davae.cli.quiet import quieten
from davae.cli.recipe import RECIPE_HELP, add_common, load

GPUS = (
    "T4",
    "L4",
    "RTX 3090",
    "RTX 4090",
    "RTX 5090",
    "A100 40GB",
    "L40S",
    "H100 PCIe",
    "H100",
    "A100",
    "H200",
    "B200",
)
"""Those of `davae.evaluate.gpus`, which costs an import."""
MODELS = (
    "SD3-Medium",
    "SD3.5-Medium",
    "FLUX.1-dev",
    "FLUX.2-dev",
    "PixArt-Sigma-XL/2",
    "Hunyuan-DiT v1.2",
    "SANA-1.6B",
    "DiT-XL/2",
    "LightningDiT-B/1",
    "LightningDiT-L/1",
    "LightningDiT-XL/1",
    "LightningDiT-1p0B/1",
    "LightningDiT-1p6B/1",
)
"""Those of `davae.backbones.public`."""


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=RECIPE_HELP)
    parser.add_argument("--gpu", metavar="NAME", help=f"device that the run is meant for: {', '.join(GPUS)}")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many of them share it (default: 1)")
    parser.add_argument(
        "--model", metavar="NAME", help=f"published model that stands for the pair, for its cost: {', '.join(MODELS)}"
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write the findings here too")
    add_common(parser)


def _run(options: argparse.Namespace) -> int:
    recipe, runs = load(options)
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.doctor.examine import report

    with watch() as progress:
        healthy = report(
            recipe,
            runs,
            progress.say,
            gpu=options.gpu,
            model=options.model,
            out=options.json,
            devices=options.devices,
        )
    return 0 if healthy else 1


VERB = Verb(
    "prove a recipe before a GPU-hour is spent, and what it will cost",
    _add_doctor,
    _run,
    {
        "doctor sd35m-1k --set data.path=PHOTOS --gpu H100": "proofs, memory and hours on that GPU",
        "doctor sd35m-1k --set data.path=PHOTOS --gpu H100 --devices 8": "the same, on eight of them",
        "doctor sd35m-1k --model SD3.5-Medium": "without the pair at hand: a published model stands for it",
    },
)
