"""`davae sweep`: many runs of one recipe, and a page of what came out."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from davae.cli import recipe
from davae.cli.grammar import Verb
from davae.cli.quiet import quieten

if TYPE_CHECKING:
    from davae.sweep.plan import Sweep


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep", help="YAML file, the folder of a sweep, or a sweep that comes with davae, for example alignment"
    )
    recipe.add_stages(parser, quick="a trial: the recipe scaled down, what cells set as they set it")
    parser.add_argument(
        "--status", action="store_true", help="say how far it is, and write the page of what there is; run nothing"
    )


def _load(options: argparse.Namespace) -> "tuple[Sweep, Path]":
    """The sweep that the options name, and the folder that its own lies in."""
    from davae.sweep.document import load_sweep
    from davae.sweep.find import sweep_folder

    begun, runs = sweep_folder(options.sweep), options.runs_dir
    sweep = load_sweep(options.sweep, options.set, overlays=options.overlay, quick=options.quick)
    if begun is None:
        return sweep, runs or Path("runs")
    if runs is not None and runs.resolve() != begun.parent:
        raise ValueError(
            f"{options.sweep} is a sweep, which stays in {begun.parent}; got --runs-dir {runs}. Leave it out."
        )
    return sweep, begun.parent


def _run(options: argparse.Namespace) -> int:
    sweep, runs = _load(options)
    if options.dry_run:
        _show_plan(sweep)
        return 0
    quieten()
    from davae.cli.terminal import watch
    from davae.sweep.show import tables_of
    from davae.sweep.sweep import PAGE, report, run_sweep

    with watch() as progress:
        if options.status:
            _require_begun(runs / sweep.name, options.sweep)
            table = report(sweep, runs / sweep.name)
        else:
            table = run_sweep(sweep, runs, progress, options.overwrite)
    for part in tables_of(table):
        progress.show(part)
    progress.say(f"page: {(runs / sweep.name / PAGE).resolve()}")
    failed = sum(run.state == "failed" for run in table.runs)
    return 1 if failed and not options.status else 0


def _require_begun(root: Path, named: str) -> None:
    from davae.sweep.find import sweep_folder

    if sweep_folder(root) is None:
        raise ValueError(f"There is no sweep in {root} yet. Run 'davae sweep {named}' first, or name its folder.")


def _show_plan(sweep: "Sweep") -> None:
    from davae.sweep.plan import setting

    for cell in sweep.cells:
        sys.stdout.write(f"{cell.name}\n")
        sys.stdout.writelines(f"    {key}={setting(value)}\n" for key, value in cell.changes.items())
        sys.stdout.writelines(f"    {cell.of_seed(seed).name}/\n" for seed in sweep.seeds)


VERB = Verb(
    "many runs of one recipe: settings that vary, seeds, one page with a table and its spread",
    _add_sweep,
    _run,
    {
        "sweep alignment": "the paper's alignment weights in small; run again, it goes on",
        "sweep alignment --set data.kind=folder --set data.path=PHOTOS --set name=photos": "the same on photographs",
        "sweep runs/alignment": "a second worker, on this machine or another that sees the folder",
        "sweep runs/alignment --status": "how far it is; writes sweep.html of what there is",
    },
)
