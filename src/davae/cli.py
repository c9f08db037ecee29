"""The command line: verbs for people. Nothing heavy is imported before a verb is known to be right."""

import argparse
import difflib
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from davae import __version__

if TYPE_CHECKING:
    from davae.recipe import Recipe

STAGE_VERBS = {
    "pretrain": "make a base pair from scratch: an autoencoder, then a transformer on its latents",
    "train-tokenizer": "train the detail encoder and joint decoder over the frozen base, then calibrate",
    "cache": "encode the training images once",
    "finetune": "teach the widened transformer the detail channels",
    "sample": "draw images",
    "evaluate": "measure, with the protocol beside every number",
    "report": "write report.html",
}


class _Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest verb."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            given = message.split("invalid choice: ")[1].split("'")[1]
            close = difflib.get_close_matches(given, ["run", "demo", *STAGE_VERBS], n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            message = f"unknown command '{given}'.{hint} 'davae --help' lists the commands."
        self.exit(2, f"davae: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line."""
    parser = _Parser(
        prog="davae",
        description="Upgrade a pretrained autoencoder and diffusion transformer: larger images, same tokens.",
    )
    parser.add_argument("--version", action="version", version=f"davae {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, parser_class=_Parser)
    demo = verbs.add_parser("demo", help="the whole method on the embedded pair and images, then a report")
    demo.add_argument("--quick", action="store_true", help="about a minute, for tests; makes no claims")
    _add_common(demo)
    whole = verbs.add_parser("run", help="every stage of a recipe")
    whole.add_argument("recipe", help="YAML file")
    _add_common(whole)
    for verb, help_text in STAGE_VERBS.items():
        one = verbs.add_parser(verb, help=help_text)
        one.add_argument("recipe", help="YAML file")
        _add_common(one)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a recipe entry")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where runs live (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and what would run")
    parser.add_argument("--overwrite", action="store_true", help="start trainings anew whose settings changed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = build_parser().parse_args(arguments)
    from safetensors import SafetensorError

    from davae.recipe import RecipeError
    from davae.train.checkpoint import CheckpointError
    from davae.train.interrupt import Interrupted, Terminated

    try:
        return _dispatch(options)
    except Interrupted as stop:
        _print(f"{stop} Run the same command to go on.")
        return 128 + stop.signal_number
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        _print(f"Stopped by {number.name}. Run the same command to go on.")
        return 128 + number
    except (
        RecipeError,
        CheckpointError,
        ValueError,
        FileNotFoundError,
        FloatingPointError,
        OSError,
        SafetensorError,
    ) as error:
        _print(f"davae: {error}")
        return 1


def _dispatch(options: argparse.Namespace) -> int:
    from diffusers.utils import logging

    from davae.stages.plan import execute, is_done, planned
    from davae.stages.run import Run

    logging.disable_progress_bar()  # "Loading pipeline components" is no news
    recipe = _recipe(options)
    is_verb = options.verb in STAGE_VERBS
    with _Progress() as progress:
        run = Run(recipe, options.runs_dir, progress, options.overwrite)
        stages = planned(run, options.verb if is_verb else None)
        if options.dry_run:
            from davae.recipe import dump_recipe

            sys.stdout.write(dump_recipe(recipe))  # alone on standard output: `> recipe.yaml` gives a recipe
            waiting = False
            for stage in stages:
                waiting = waiting or not is_done(run, stage)
                progress.say(f"{'would run' if waiting else 'done':>10}  {stage.name}")
            return 0
        execute(run, stages)
        if run.accelerator.is_main_process and stages[-1].name == "report":
            progress.say(f"report: {(run.folder / 'report.html').resolve()}")
    return 0


def _recipe(options: argparse.Namespace) -> "Recipe":
    from importlib.resources import files

    from davae.recipe import load_recipe

    if options.verb == "demo":
        name = "demo-quick.yaml" if options.quick else "demo.yaml"
        return load_recipe(Path(str(files("davae") / "recipes" / name)), options.set)
    return load_recipe(options.recipe, options.set)


def _print(message: str) -> None:
    sys.stderr.write(message + "\n")


class _Progress:
    """An observer that draws progress bars with rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=self._console,
            refresh_per_second=2,
        )
        self._task: Any = None

    def __enter__(self) -> "_Progress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, stage: str, total: int, done: int = 0) -> None:
        """See `Observer`."""
        self._task = self._progress.add_task(stage, total=total, completed=done, values="")

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """See `Observer`."""
        self._progress.update(self._task, completed=done)
        if values:
            self._progress.update(self._task, values=_summary(values))

    def end(self) -> None:
        """See `Observer`."""
        self._progress.refresh()

    def say(self, message: str) -> None:
        """See `Observer`."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def _summary(values: Mapping[str, float]) -> str:
    shown = ("loss_base", "loss_detail", "l1", "psnr", "align", "images_per_second")
    return "  ".join(f"{name.removeprefix('loss_')} {values[name]:.3g}" for name in shown if name in values)
