"""The command line: verbs for people. Nothing heavy is imported before a verb is known to be right."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from davae import __version__
from davae.cli import analyze, convert, doctor, evaluate, export, generate, keys, recipe, sweep, tables, upscale
from davae.cli.grammar import Parser, Verb

STAGE_VERBS = recipe.STAGE_VERBS
TOOLS: dict[str, Verb] = {
    "keys": keys.VERB,
    "tables": tables.VERB,
    "doctor": doctor.VERB,
    "statistics": evaluate.STATISTICS,
    "generate": generate.VERB,
    "upscale": upscale.VERB,
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
    for name, verb in {**recipe.VERBS, "evaluate": evaluate.VERB, "sweep": sweep.VERB, **TOOLS}.items():
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
    from davae.train.interrupt import Interrupted, Terminated

    try:
        return options.run(options)
    except (ValueError, FloatingPointError, OSError) as error:
        _print(f"davae: {error}", is_local=isinstance(error, OSError))
        return 1
    except Interrupted as stop:
        _print(f"{stop} Run the same command to go on.")
        return 128 + stop.signal_number
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _print(f"Stopped by {number.name}. Run the same command to go on.")
        return 128 + number
    except _errors_of_storage() as error:
        _print(f"davae: {error}", is_local=not isinstance(error, RuntimeError))
        return 1


def _errors_of_storage() -> tuple[type[Exception], ...]:
    """Errors whose homes are heavy: looked up where an error is none of the others, never for a refused recipe."""
    from safetensors import SafetensorError

    from davae.train.checkpoint import CheckpointError

    return CheckpointError, SafetensorError


def _print(message: str, is_local: bool = False) -> None:
    """One line on standard error; of several processes the first one speaks, the others of their own troubles."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or is_local:
        sys.stderr.write(f"{message}\n" if rank == "0" else f"process {rank}: {message}\n")
