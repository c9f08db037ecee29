"""`davae evaluate`: a run by its recipe, any autoencoders side by side, or any images; `davae statistics`."""

import argparse
from typing import TYPE_CHECKING

from davae.cli import prompted, recipe
from davae.cli.grammar import Verb, path, path_or_name
from davae.cli.quiet import quieten

if TYPE_CHECKING:
    from davae.tools.judge import Judging

METRICS = "fid,sfid,is,kid,precision-recall,mind"
"""What is measured unless --metrics says otherwise: what one network gives."""
_STATISTICS = "fid,sfid"


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="as of run; or one of the ways below, without a recipe")
    parser.add_argument("--images", type=path, metavar="PATH", help="images: of the table, or to be judged")
    parser.add_argument("--out", type=path, metavar="FOLDER", help="where results.json and report.html go")
    table = parser.add_argument_group(
        "autoencoders side by side", "PSNR, SSIM and LPIPS of any autoencoders on --images FOLDER"
    )
    table.add_argument(
        "--autoencoders",
        nargs="+",
        type=path_or_name,
        metavar="PATH",
        help="saved autoencoders or pipelines, or hub ids",
    )
    table.add_argument("--size", type=int, help="side of center squares, pixels (default: whole images)")
    judged = parser.add_argument_group(
        "any images against any others", "--images is a folder, tar shards, or an npz with arr_0"
    )
    judged.add_argument(
        "--reference",
        type=path,
        metavar="PATH",
        help="the same, or a statistics file (ADM, pytorch-fid, clean-fid, ours)",
    )
    judged.add_argument(
        "--metrics",
        metavar="NAMES",
        help="of fid, sfid, is, is-shuffled, kid, kid-biased, precision-recall, mind, fdd, cmmd "
        f"(default: {METRICS}); with --prompts of clip-score, clip-score-hessel",
    )
    judged.add_argument("--count", type=int, metavar="N", help="refuse another number of images")
    _add_judging(judged)
    prompted.add_arguments(parser)
    recipe.add_stages(parser)


def _add_judging(parser: argparse._ActionsContainer) -> None:
    """Options of everything that takes features of images."""
    parser.add_argument(
        "--protocol",
        choices=("adm", "pytorch-fid", "clean"),
        help="how Inception's images are resized (default: adm)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse files that are no usable image")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="SPACE=PATH",
        help="weights of inception, dinov2 or clip-336 from a file, a folder or a hub name",
    )
    parser.add_argument("--download", action="store_true", help="fetch public weights that are not here")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images through a network at once (default: 32)")
    parser.add_argument(
        "--features", type=path, metavar="FOLDER", help="where features are kept (default: features in the cache)"
    )


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=path, help="a folder, tar shards, or an npz with arr_0")
    parser.add_argument("--out", type=path, required=True, metavar="FILE", help="statistics file, .npz")
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help=f"for which metrics it has to serve as a reference (default: {_STATISTICS})",
    )
    parser.add_argument("--count", type=int, metavar="N", help="refuse another number of images")
    _add_judging(parser)


def _evaluate(options: argparse.Namespace) -> int:
    if prompted.is_asked(options):
        return prompted.run(options)
    judged = _given(options, "reference", "metrics", "count", "protocol", "strict", "weights", "download") + _given(
        options, "batch_size", "features"
    )
    table = _given(options, "autoencoders", "size")
    if options.recipe and not (options.images or options.out or judged or table):
        return recipe.run_stages(options)
    if options.recipe or options.images is None or (judged and table) or _given(options, "set"):
        raise ValueError(
            "evaluate takes a recipe; or --images FOLDER with --autoencoders PATH ...; or --images PATH with "
            "--reference PATH and --metrics NAMES. 'davae evaluate --help' shows all three."
        )
    return _autoencoders(options) if table else _judge(options)


def _given(options: argparse.Namespace, *names: str) -> list[str]:
    return [name for name in names if getattr(options, name)]


def _autoencoders(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.autoencoders import evaluate_autoencoders, table_of

    if not options.autoencoders:
        raise ValueError("--size belongs to --autoencoders PATH ...; judged images are resized by their protocol.")
    with watch() as progress:
        results = evaluate_autoencoders(options.autoencoders, options.images, options.size, options.out, progress)
    progress.show(table_of(results))
    return 0


def _judge(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.judge import judge, table_of

    judging = _judging(options, METRICS)
    with watch() as progress:
        results = judge(options.images, options.reference, judging, options.out, progress)
    if results.measurements:  # of several processes the first one has them
        progress.show(table_of(results))
    return 0


def _statistics(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.judge import make_statistics

    judging = _judging(options, _STATISTICS)
    with watch() as progress:
        make_statistics(options.images, options.out, judging, progress)
    return 0


def _judging(options: argparse.Namespace, metrics: str) -> "Judging":
    from davae.tools.judge import Judging

    weights = dict(_pair(given) for given in options.weights)
    return Judging(
        metrics=[name.strip() for name in (options.metrics or metrics).split(",") if name.strip()],
        protocol=options.protocol or "adm",
        weights=weights,
        allow_download=options.download,
        is_strict=options.strict,
        count=options.count,
        batch_size=32 if options.batch_size is None else options.batch_size,
        folder=options.features,
    )


def _pair(given: str) -> tuple[str, str]:
    space, equals, path = given.partition("=")
    if not (space and equals and path):
        raise ValueError(f"--weights takes SPACE=PATH; got '{given}', allowed is for example inception=FILE.pth.")
    return space, path


VERB = Verb(
    recipe.STAGE_VERBS["evaluate"],
    _add_evaluate,
    _evaluate,
    {
        "evaluate runs/sd35m-1k": "measure a run that is there once more",
        "evaluate --images DRAWN --reference PHOTOS --metrics fid,kid --download": "any images against any others",
        "evaluate --images samples.npz --reference VIRTUAL_imagenet256_labeled.npz": "ADM's protocol and reference",
        "evaluate --geneval DRAWN --prompts evaluation_metadata.jsonl --out judged": "GenEval, and what failed",
        "evaluate --images DRAWN --prompts prompts.txt": "CLIP score",
        "evaluate --autoencoders vae runs/x/tokenizer --images PHOTOS --out table": "autoencoders side by side",
    },
)
STATISTICS = Verb(
    "statistics of reference images in one file, for evaluate --reference",
    _add_statistics,
    _statistics,
    {"statistics PHOTOS --out photos.npz --metrics fid,kid,fdd": "all that these three need of a reference"},
)
