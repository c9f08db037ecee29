"""`davae evaluate` of images by the prompts that they are of: GenEval and CLIP score."""

import argparse

from davae.cli.grammar import path
from davae.cli.quiet import quieten

METRICS = ("clip-score", "clip-score-hessel")
"""Those of `davae.evaluate.clip_score`, which costs an import."""


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
    group.add_argument("--kind", choices=("baseline", "preview"), help="in place of the images, what is beside them")


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the command line asks for one of the two."""
    asked = (options.geneval, options.prompts, options.detections, options.detector, options.clip, options.kind)
    return any(asked) or any(name in METRICS for name in _names(options.metrics))


def run(options: argparse.Namespace) -> int:
    """Judge, and print the scores."""
    if options.recipe or options.autoencoders or bool(options.geneval) == bool(options.images):
        raise ValueError(
            "Images are judged by their prompts with --geneval FOLDER, or with --images FOLDER and --prompts FILE; "
            "got something else. 'davae evaluate --help' shows both."
        )
    quieten()
    return _geneval(options) if options.geneval else _clip_score(options)


def _geneval(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.tools.geneval import judge_geneval

    if options.metrics:
        raise ValueError("GenEval is a metric of its own; got --metrics. Leave it out.")
    with watch() as progress:
        judge_geneval(
            options.geneval,
            options.prompts,
            detections=options.detections,
            detector=options.detector,
            clip=options.clip,
            kind=options.kind or "",
            out=options.out,
            observer=progress,
        )
    return 0


def _clip_score(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.tools.clip_score import score_captions

    if options.detections or options.detector:
        raise ValueError("--detections and --detector are of GenEval; got no --geneval FOLDER. Leave them out.")
    metrics = _names(options.metrics) or ["clip-score"]
    with watch() as progress:
        score_captions(
            options.images,
            options.prompts,
            metrics,
            clip=options.clip,
            kind=options.kind or "",
            out=options.out,
            observer=progress,
        )
    return 0


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
