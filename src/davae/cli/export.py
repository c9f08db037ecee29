"""`davae export`."""

import argparse
from pathlib import Path

from davae.cli.grammar import Verb
from davae.cli.recipe import add_common, load


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML file of a finished run")
    parser.add_argument("target", type=Path, metavar="FOLDER", help="new folder of the pipeline")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16", help="of the weights"
    )
    parser.add_argument("--licence", default="auto", help="id of the weights' licence, or none (default: recognised)")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="hub name of the pretrained pair, for the card")
    parser.add_argument("--overwrite", action="store_true", help="replace a pipeline that lies there")
    add_common(parser)


def _run(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.run.run import Run
    from davae.tools.export import export_run

    with watch() as progress:
        export_run(
            Run(load(options), options.runs_dir, progress),
            options.target,
            dtype=options.dtype,
            licence=options.licence,
            base_model=options.base_model,
            overwrite=options.overwrite,
        )
    return 0


VERB = Verb(
    "the upgraded pipeline of a run as one folder that stock diffusers loads",
    _add_export,
    _run,
    {
        "export runs/sd35m-1k sd35m-1024": "LoRA folded in, with a model card",
        "export runs/sd35m-1k sd35m-1024 --base-model stabilityai/stable-diffusion-3.5-medium": "name its origin",
    },
)
