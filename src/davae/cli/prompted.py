"""`davae evaluate` of images by the prompts that they are of: GenEval and CLIP score."""

import argparse
from typing import TYPE_CHECKING

from davae.cli.grammar import given, names_of, path
from davae.cli.quiet import quieten

if TYPE_CHECKING:
    from davae.cli.terminal import Watch
    from davae.evaluate.results import Results

METRICS = ("clip-score", "clip-score-hessel")
"""Those of `davae.evaluate.clip_score`, which costs an import."""
_IDLE = ("reference", "count", "protocol", "weights", "batch_size", "features", "categories", "upscale", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside those of a recipe."""
    group = parser.add_argument_group("images by their prompts", "GenEval, or the CLIP score of --images; no recipe")
    group.add_argument("--geneval", type=path, metavar="FOLDER", help="images of GenEval's prompts, four of each")
    group.add_argument(
        "--prompts", type=path, metavar="FILE", help="what the images were drawn from (evaluation_metadata.jsonl)"
    )
    group.add_argument("--detections", type=path, metavar="FILE", help="what another detector saw, a line an image")
    group.add_argument("--detector", metavar="PATH", help="Mask2Former for instances: folder or hub name")
    group.add_argument("--clip", metavar="PATH", help="CLIP: folder or hub name")


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the command line asks for one of the two."""
    asked = (options.geneval, options.detections, options.detector, options.clip)
    names = names_of(options.metrics or "")
    return any(asked) or any(name in METRICS for name in names) or (options.prompts is not None and not names)


def run(options: argparse.Namespace) -> int:
    """Judge, and print the scores."""
    if options.recipe or options.autoencoders or bool(options.geneval) == bool(options.images):
        raise ValueError(
            "Images are judged by their prompts with --geneval FOLDER, or with --images FOLDER and --prompts FILE; "
            "got something else. 'davae evaluate --help' shows both."
        )
    if idle := given(options, *_IDLE):
        raise ValueError(
            f"{idle[0]} has no effect on images that are judged by their prompts. Leave it out; "
            f"'davae evaluate --help' shows what it belongs to."
        )
    quieten()
    return _geneval(options) if options.geneval else _clip_score(options)


def _geneval(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.tools.geneval import judge_geneval

    if options.metrics:
        raise ValueError("GenEval is a metric of its own; got --metrics. Leave it out.")
    with watch() as progress:
        results = judge_geneval(
            options.geneval,
            options.prompts,
            detections=options.detections,
            detector=options.detector,
            clip=options.clip,
            allow_download=options.download,
            kind=options.kind or "",
            out=options.out,
            observer=progress,
        )
        _show(results, progress)
    return 0


def _clip_score(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.tools.clip_score import score_captions

    if options.detections or options.detector:
        raise ValueError("--detections and --detector are of GenEval; got no --geneval FOLDER. Leave them out.")
    metrics = names_of(options.metrics or "") or ["clip-score"]
    with watch() as progress:
        results = score_captions(
            options.images,
            options.prompts,
            metrics,
            clip=options.clip,
            allow_download=options.download,
            kind=options.kind or "",
            out=options.out,
            observer=progress,
        )
        _show(results, progress)
    return 0


def _show(results: "Results", progress: "Watch") -> None:
    """The scores with their intervals, once of several processes."""
    from accelerate import PartialState
    from rich.table import Table
    from rich.text import Text

    if not PartialState().is_main_process:
        return
    table = Table(title=Text(results.run["name"]), caption=Text(results.run["summary"]), caption_justify="left")
    table.add_column("")
    for heading in ("score ↑", "95% interval", "images"):
        table.add_column(heading, justify="right")
    cells = {(item.group, item.row, item.column): item for item in results.measurements}
    for group, row, column in cells:
        if (group, row, "95% from") in cells and column in ("score", group):
            item, low, high = (cells[group, row, name] for name in (column, "95% from", "95% to"))
            name, digits = (row, 3) if column == "score" else (group, 2)
            images = cells.get((group, row, "images"))
            count = item.protocol["images"] if images is None else images.value
            interval = f"{low.value:.{digits}f} to {high.value:.{digits}f}"
            table.add_row(Text(name), f"{item.value:.{digits}f}", interval, f"{count:,.0f}")
    progress.show(table)
