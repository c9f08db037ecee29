"""The command line: verbs for people. Nothing heavy is imported before a verb is known to be right."""

import argparse
import difflib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from davae import __version__

if TYPE_CHECKING:
    from davae.recipe import Recipe
    from davae.terminal import ProgressBars

STAGE_VERBS = {
    "pretrain": "make a base pair from scratch: an autoencoder, then a transformer on its latents",
    "train-tokenizer": "train the detail encoder and joint decoder over the frozen base, then calibrate",
    "cache": "encode the training images once",
    "prompts": "encode the captions once (text to image)",
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
            close = difflib.get_close_matches(given, ["run", "demo", *STAGE_VERBS, *TOOLS], n=1)
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
        if verb == "evaluate":
            one.add_argument("recipe", nargs="?", help="YAML file; or --autoencoders and --images without one")
            _add_autoencoder_table(one)
        else:
            one.add_argument("recipe", help="YAML file")
        _add_common(one)
    for verb, (help_text, add_arguments) in TOOLS.items():
        add_arguments(verbs.add_parser(verb, help=help_text))
    return parser


def _add_autoencoder_table(parser: argparse.ArgumentParser) -> None:
    table = parser.add_argument_group(
        "autoencoders side by side", "PSNR, SSIM and LPIPS of any autoencoders, no recipe"
    )
    table.add_argument(
        "--autoencoders", nargs="+", metavar="PATH", help="saved autoencoders or pipelines, or hub ids"
    )
    table.add_argument("--images", type=Path, metavar="FOLDER", help="images, whole unless --size is given")
    table.add_argument("--size", type=int, help="side of center squares, pixels (default: whole images)")
    table.add_argument("--out", type=Path, metavar="FOLDER", help="where results.json and report.html go")


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="folder of a trained AutoencoderDA")
    parser.add_argument("folder", metavar="FOLDER", help="images or tar shards not trained on, or 'solids'")
    parser.add_argument("--size", type=int, help="side of the images, pixels (default: that of the tokenizer's run)")
    parser.add_argument("--images", type=int, default=256, help="images at most (default: 256)")
    parser.add_argument("--compare", type=Path, nargs="+", default=[], metavar="OTHER", help="tokenizers beside it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the report goes")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", type=Path, nargs="+", metavar="FILE", help="checkpoint; two for TAESD's family")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="new folder of the diffusers model")
    parser.add_argument("--kind", default="auto", help="layout of the checkpoint (default: found by its keys)")
    parser.add_argument("--base", type=Path, help="the base autoencoder, where the checkpoint lacks its decoder")
    parser.add_argument("--statistics", type=Path, help="latent mean and std: .pt, .safetensors or .json")
    parser.add_argument("--scaling-factor", type=float, help="of the base's latents, for example 0.18215 (SD 1)")
    parser.add_argument("--shift-factor", type=float, help="likewise, for example 0.0609 (SD 3)")
    parser.add_argument("--norm-groups", type=int, default=32, help="of its group norms (default: 32)")
    transformer = parser.add_argument_group("transformers")
    transformer.add_argument(
        "--weights", choices=("ema", "model"), help="which of a training's (default: the average)"
    )
    transformer.add_argument("--heads", type=int, help="attention heads, where the weights do not show them")
    transformer.add_argument(
        "--qk-norm", action=argparse.BooleanOptionalAction, help="what you expect of a LightningDiT; else refused"
    )
    transformer.add_argument("--vae", type=Path, metavar="PATH", help="a LightningDiT's autoencoder: write the pair")
    transformer.add_argument("--time-shift", type=float, help="of the pair's scheduler (default: 0.3)")


TOOLS = {
    "analyze": ("what a tokenizer's latent holds: sensitivity, spectra, alignment, components", _add_analyze),
    "convert": ("bring a checkpoint of another code base in as a diffusers model", _add_convert),
}
"""Verbs without a recipe."""


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
    from transformers.utils import logging as transformers_logging

    logging.disable_progress_bar()  # "Loading pipeline components" is no news
    transformers_logging.disable_progress_bar()
    if options.verb == "analyze":
        _analyze(options)
    elif options.verb == "convert":
        _convert(options)
    elif options.verb == "evaluate" and (options.autoencoders or options.images or not options.recipe):
        _compare_autoencoders(options)
    else:
        _run(options)
    return 0


def _run(options: argparse.Namespace) -> None:
    """Stages of a recipe."""
    from davae.terminal import ProgressBars

    recipe = _recipe(options)
    with ProgressBars() as progress:
        _run_stages(options, recipe, progress)


def _run_stages(options: argparse.Namespace, recipe: "Recipe", progress: "ProgressBars") -> None:
    from davae.stages.plan import execute, is_done, planned
    from davae.stages.run import Run

    run = Run(recipe, options.runs_dir, progress, options.overwrite)
    stages = planned(run, options.verb if options.verb in STAGE_VERBS else None)
    if options.dry_run:
        from davae.recipe import dump_recipe

        sys.stdout.write(dump_recipe(recipe))  # alone on standard output: `> recipe.yaml` gives a recipe
        waiting = False
        for stage in stages:
            waiting = waiting or not is_done(run, stage)
            progress.say(f"{'would run' if waiting else 'done':>10}  {stage.name}")
        return
    execute(run, stages)
    if run.accelerator.is_main_process and stages[-1].name == "report":
        progress.say(f"report: {(run.folder / 'report.html').resolve()}")


def _analyze(options: argparse.Namespace) -> None:
    from davae.stages.analyze import analyze
    from davae.terminal import ProgressBars

    with ProgressBars() as progress:
        page = analyze(
            options.tokenizer,
            options.folder,
            options.out,
            size=options.size,
            count=options.images,
            compare=options.compare,
            observer=progress,
            seed=options.seed,
        )
        progress.say(f"report: {page.resolve()}")


def _convert(options: argparse.Namespace) -> None:
    from davae.stages.convert import work

    work(
        options.sources,
        options.to,
        _print,
        kind=options.kind,
        base=options.base,
        statistics=options.statistics,
        scaling_factor=options.scaling_factor,
        shift_factor=options.shift_factor,
        norm_num_groups=options.norm_groups,
        weights=options.weights,
        num_attention_heads=options.heads,
        qk_norm=options.qk_norm,
        vae=options.vae,
        time_shift=options.time_shift,
    )


def _compare_autoencoders(options: argparse.Namespace) -> None:
    from davae.stages.autoencoders import evaluate_autoencoders, table_of
    from davae.terminal import ProgressBars

    if options.recipe or not (options.autoencoders and options.images):
        raise ValueError(
            "evaluate takes a recipe, or --autoencoders PATH ... together with --images FOLDER. "
            "'davae evaluate --help' shows both."
        )
    with ProgressBars() as progress:
        results = evaluate_autoencoders(options.autoencoders, options.images, options.size, options.out, progress)
    progress.show(table_of(results))


def _recipe(options: argparse.Namespace) -> "Recipe":
    from importlib.resources import files

    from davae.recipe import load_recipe

    if options.verb == "demo":
        name = "demo-quick.yaml" if options.quick else "demo.yaml"
        return load_recipe(Path(str(files("davae") / "recipes" / name)), options.set)
    return load_recipe(options.recipe, options.set)


def _print(message: str) -> None:
    sys.stderr.write(message + "\n")
