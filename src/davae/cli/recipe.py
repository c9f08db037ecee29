"""Verbs of recipes: a whole run, its stages one by one, and the demo."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from davae.cli.grammar import Verb, path
from davae.cli.quiet import quieten

if TYPE_CHECKING:
    from davae.cli.terminal import Watch
    from davae.recipe import Recipe

STAGE_VERBS = {
    "pretrain": "make a base pair from scratch: an autoencoder, then a transformer on its latents",
    "train-judge": "train a judge of rendered solids, by which drawn ones are measured",
    "train-tokenizer": "train the detail encoder and joint decoder over the frozen base, then calibrate",
    "cache": "encode the training images once",
    "prompts": "encode the captions once (text to image)",
    "finetune": "teach the widened transformer the detail channels",
    "sample": "draw images",
    "evaluate": "measure, with the protocol beside every number",
    "report": "write report.html",
}


RECIPE_HELP = "YAML file, the folder of a run, or a recipe that comes with davae, for example sd35m-1k"


def add_common(parser: argparse.ArgumentParser, quick: str = "a trial: the same models, a minute or two") -> None:
    """Options of everything that works on a recipe's run."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a recipe entry; '**.steps=20' changes all of this name",
    )
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        type=path,
        metavar="FILE",
        help="lay a file of entries over the recipe",
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--runs-dir", type=path, help="where runs live (default: runs, or where the run's folder lies)"
    )


def load(options: argparse.Namespace) -> "tuple[Recipe, Path]":
    """The recipe that the options name, with their changes, and the folder that its run lies in.

    Raises:
        ValueError: a run's folder is named, and another place for runs.
    """
    from davae.recipe import load_recipe, run_folder

    run, runs = run_folder(options.recipe), options.runs_dir
    recipe = load_recipe(options.recipe, options.set, overlays=options.overlay, quick=options.quick)
    if run is None:
        return recipe, runs or Path("runs")
    if runs is not None and runs.resolve() != run.parent:
        raise ValueError(
            f"{options.recipe} is a run, which stays in {run.parent}; got --runs-dir {runs}. Leave it out."
        )
    return recipe, run.parent


def add_stages(parser: argparse.ArgumentParser, **common: str) -> None:
    """Options of what runs stages."""
    add_common(parser, **common)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and what would run")
    parser.add_argument("--overwrite", action="store_true", help="start trainings anew whose settings changed")


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=RECIPE_HELP)
    add_stages(parser)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    add_stages(parser, quick="about a minute, for tests; makes no claims")


def _demo(options: argparse.Namespace) -> int:
    from davae.recipe import shipped_recipes

    options.recipe = shipped_recipes()["demo-quick" if options.quick else "demo"]
    options.quick = False  # its own quick form keeps what the demo shows
    return run_stages(options)


def run_stages(options: argparse.Namespace) -> int:
    """Stages of a recipe."""
    recipe, runs = load(options)
    quieten()
    from davae.cli.terminal import watch

    with watch() as progress:
        _run_stages(options, recipe, runs, progress)
    return 0


def _run_stages(options: argparse.Namespace, recipe: "Recipe", runs: Path, progress: "Watch") -> None:
    from davae.run.execute import execute, is_done, planned
    from davae.run.run import Run
    from davae.stages import STAGES

    run = Run(recipe, runs, progress, options.overwrite)
    stages = planned(STAGES, recipe, options.verb if options.verb in STAGE_VERBS else None)
    if options.dry_run:
        from davae.recipe import dump_recipe

        sys.stdout.write(dump_recipe(recipe))  # alone on standard output: `> recipe.yaml` gives a recipe
        waiting = False
        for stage in stages:
            waiting = waiting or not is_done(run, stage)
            progress.say(f"{'would run' if waiting else 'done':>10}  {stage.name}")
        return
    execute(run, stages)
    if run.is_main and stages[-1].name == "report":
        progress.say(f"report: {run.folder.report.resolve()}")


_RUN_EXAMPLES = {
    "run sd35m-1k --set data.path=PHOTOS": "the paper's recipe on your photographs; run again, it goes on",
    "run sd35m-1k --set data.path=PHOTOS --quick": "everything once in small, to see that it works",
    "run RECIPE --set name=lora --set finetune.lora.rank=64": "another run, one setting changed",
    "run RECIPE --dry-run": "the resolved recipe, and which stages would run",
}


def _stage_verb(name: str, sentence: str) -> Verb:
    return Verb(
        sentence, _add_recipe, run_stages, {f"{name} RECIPE": "this stage alone; what it needs is done before"}
    )


VERBS = {
    "demo": Verb(
        "the whole method on the embedded pair and images, then a report",
        _add_demo,
        _demo,
        {"demo": "minutes on two cores; no GPU, no download", "demo --quick": "the same path in one minute"},
    ),
    "run": Verb("every stage of a recipe", _add_recipe, run_stages, _RUN_EXAMPLES),
    **{name: _stage_verb(name, sentence) for name, sentence in STAGE_VERBS.items()},
}
