"""The command line: verbs for people. Nothing heavy is imported before a verb is known to be right."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from logging import LogRecord, getLogger

from davae import __version__
from davae.cli import analyze, convert, doctor, export, generate, keys, recipe
from davae.cli.grammar import Parser, Verb

STAGE_VERBS = recipe.STAGE_VERBS
TOOLS: dict[str, Verb] = {
    "keys": keys.VERB,
    "doctor": doctor.VERB,
    "generate": generate.VERB,
    "export": export.VERB,
    "analyze": analyze.VERB,
    "convert": convert.VERB,
}
"""Verbs that run no stage."""


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = Parser(
        prog="davae",
        description="Upgrade a pretrained autoencoder and diffusion transformer: larger images, same tokens.",
    )
    parser.add_argument("--version", action="version", version=f"davae {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=Parser)
    for name, verb in {**recipe.VERBS, **TOOLS}.items():
        command = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=verb.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_arguments(command)
        command.set_defaults(run=verb.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    from safetensors import SafetensorError

    from davae.train.checkpoint import CheckpointError
    from davae.train.interrupt import Interrupted, Terminated

    try:
        return _run(options)
    except Interrupted as stop:
        _print(f"{stop} Run the same command to go on.")
        return 128 + stop.signal_number
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _print(f"Stopped by {number.name}. Run the same command to go on.")
        return 128 + number
    except (CheckpointError, ValueError, FloatingPointError, OSError, SafetensorError) as error:
        _print(f"davae: {error}", is_local=isinstance(error, OSError | SafetensorError))
        return 1


def _run(options: argparse.Namespace) -> int:
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()  # "Loading pipeline components" is no news
    transformers_logging.disable_progress_bar()
    for name in ("models.modeling_utils", "pipelines.pipeline_utils"):
        getLogger(f"diffusers.{name}").addFilter(_is_news)
    return options.run(options)


def _is_news(record: LogRecord) -> bool:
    """Not what diffusers says of every upgraded pipeline, nor its warning about an empty list of modules."""
    message = record.getMessage()
    return not (message.startswith("Expected types for vae") or "should be kept in float32: []" in message)


def _print(message: str, is_local: bool = False) -> None:
    """One line on standard error; of several processes the first one speaks, the others of their own troubles."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or is_local:
        sys.stderr.write(f"{message}\n" if rank == "0" else f"process {rank}: {message}\n")
