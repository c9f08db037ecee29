"""`davae export`."""

import argparse

from davae.cli.grammar import Verb, path
from davae.cli.quiet import quieten
from davae.cli.recipe import add_common, load


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="of a finished run: its folder, or its recipe")
    parser.add_argument("target", type=path, metavar="FOLDER", help="new folder of the pipeline")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16", help="of the weights"
    )
    parser.add_argument("--licence", default="auto", help="id of the weights' licence, or none (default: recognised)")
    parser.add_argument("--base-model", metavar="ORG/NAME", help="hub name of the pretrained pair, for the card")
    parser.add_argument("--overwrite", action="store_true", help="replace a pipeline that lies there")
    add_common(parser)


def _run(options: argparse.Namespace) -> int:
    recipe, runs = load(options)
    quieten()
    from davae.cli.terminal import watch
    from davae.run.run import Run
    from davae.tools.export import export_run

    with watch() as progress:
        export_run(
            Run(recipe, runs, progress),
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
