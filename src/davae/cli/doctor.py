"""`davae doctor`."""

import argparse
from pathlib import Path

from davae.cli.grammar import Verb
from davae.cli.recipe import add_common, load


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--gpu", metavar="NAME", help="device that the run is meant for, for example H100")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="how many of them share it (default: 1)")
    parser.add_argument("--model", metavar="NAME", help="published model that stands for the pair, for its cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")
    add_common(parser)


def _run(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.tools.doctor.examine import report

    with watch() as progress:
        healthy = report(
            load(options),
            options.runs_dir,
            progress.say,
            gpu=options.gpu,
            model=options.model,
            out=options.json,
            devices=options.devices,
        )
    return 0 if healthy else 1


VERB = Verb("prove a recipe before a GPU-hour is spent, and what it will cost", _add_doctor, _run)
