"""`davae doctor`."""

import argparse
from pathlib import Path

from davae.cli.grammar import Verb
from davae.cli.recipe import add_common, load


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument("--gpu", metavar="NAME", help="device that the run is meant for, for example H100")
    parser.add_argument("--model", metavar="NAME", help="published model that stands for the pair, for its cost")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")
    add_common(parser)


def _work(options: argparse.Namespace) -> int:
    from davae.stages.doctor.examine import work
    from davae.terminal import ProgressBars

    with ProgressBars() as progress:
        healthy = work(load(options), options.runs_dir, progress.say, options.gpu, options.model, options.json)
    return 0 if healthy else 1


VERB = Verb("prove a recipe before a GPU-hour is spent, and what it will cost", _add_doctor, _work)
