"""`davae evaluate`: a run by its recipe, any autoencoders side by side, or any images; `davae statistics`."""

import argparse
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from davae.cli import prompted, recipe
from davae.cli.grammar import Verb, given, names_of, path, path_or_name
from davae.cli.quiet import quieten

if TYPE_CHECKING:
    from davae.cli.terminal import Watch
    from davae.evaluate.spaces.resize import Protocol
    from davae.tools.judge import Judging

METRICS = "fid,sfid,is,kid,precision-recall,mind"
"""What is measured unless --metrics says otherwise: what one network gives."""
_STATISTICS = "fid,sfid"
_OF_FEATURES, _BY_CATEGORY = "frechet,kid", "fid"
_OF_IMAGES = ("protocol", "strict", "weights", "download", "batch_size", "features", "categories", "kind", "upscale")
_JUDGED = ("reference", "metrics", "count", *_OF_IMAGES)


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
    table.add_argument(
        "--size", type=int, help="side of center squares, pixels (default: whole images); with --upscale, see there"
    )
    judged = parser.add_argument_group(
        "any images against any others",
        "--images is a folder, tar shards, or an npz with arr_0; or of features, as --reference then is",
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
        help="of fid, sfid, is, is-shuffled, kid, kid-biased, precision-recall, mind, fdd, cmmd, fd-solids, "
        f"solids-accuracy, solids-fineness (default: {METRICS}); with --prompts of clip-score, clip-score-hessel, "
        "solids-accuracy; "
        "of features: frechet, kid, kid-biased, precision-recall, mind",
    )
    judged.add_argument(
        "--categories", type=path, metavar="FILE", help="MJHQ-30K's meta_data.json: each category, and all of them"
    )
    judged.add_argument("--kind", choices=("baseline", "preview"), help="in place of the images, what is beside them")
    judged.add_argument(
        "--upscale",
        metavar="SPEC",
        help="enlarge the images first, to --size N on the shorter side, into OUT/enlarged; as of davae upscale",
    )
    judged.add_argument("--count", type=int, metavar="N", help="refuse another number of images")
    _add_judging(judged)
    prompted.add_arguments(parser)
    recipe.add_stages(parser)


def _add_judging(parser: argparse._ActionsContainer) -> None:
    """Options of everything that takes features of images."""
    parser.add_argument(
        "--protocol",
        metavar="NAMES",
        help="how Inception's images are resized: of adm, pytorch-fid, clean (default: adm)",
    )
    parser.add_argument("--strict", action="store_true", help="refuse files that are no usable image")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="SPACE=PATH",
        help="weights of inception, dinov2, clip-336 or solids from a file, a folder or a hub name",
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
    judged, table = given(options, *_JUDGED), given(options, "autoencoders", "size")
    if options.recipe and not (options.images or options.out or judged or table):
        return recipe.run_stages(options)
    if options.recipe or options.images is None or (judged and options.autoencoders) or given(options, "set"):
        raise ValueError(
            "evaluate takes a recipe; or --images FOLDER with --autoencoders PATH ...; or --images PATH with "
            "--reference PATH and --metrics NAMES. 'davae evaluate --help' shows all three."
        )
    if not options.autoencoders and (options.size is None) != (options.upscale is None):
        raise ValueError(
            "--size belongs to --autoencoders PATH ..., and to --upscale SPEC, which needs it; judged images are "
            "resized by their protocol."
        )
    return _autoencoders(options) if options.autoencoders else _judge(options)


def _autoencoders(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.autoencoders import evaluate_autoencoders, table_of

    with watch() as progress:
        results = evaluate_autoencoders(options.autoencoders, options.images, options.size, options.out, progress)
    progress.show(table_of(results))
    return 0


def _judge(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.evaluate.feature_files import is_feature_file
    from davae.tools.judge import judge, table_of

    is_features = is_feature_file(options.images)
    if is_features and (idle := given(options, *_OF_IMAGES)):
        raise ValueError(f"{idle[0]} has no effect: {options.images} holds features, not images. Leave it out.")
    judging = _judging(options, _OF_FEATURES if is_features else _BY_CATEGORY if options.categories else METRICS)
    with watch() as progress:
        images = _enlarged(options, progress) if options.upscale else options.images
        results = judge(images, options.reference, judging, options.out, progress)
    if results.measurements:  # of several processes the first one has them
        progress.show(table_of(results))
    return 0


def _enlarged(options: argparse.Namespace, progress: "Watch") -> Path:
    """The folder of the images once they are enlarged."""
    from davae.run.paths import refuse_claimed
    from davae.sampling.upscaling import open_upscaler
    from davae.tools.upscale import upscale

    if options.out is None or options.kind:
        raise ValueError("--upscale SPEC enlarges images, not what is beside them, and needs --out, where they stay.")
    refuse_claimed(options.out, "the judgement")
    return upscale(options.images, options.out / "enlarged", options.size, open_upscaler(options.upscale), progress)


def _statistics(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.judge import make_statistics

    judging = _judging(options, _STATISTICS)
    if len(judging.protocols) > 1:
        raise ValueError(f"A statistics file is of one protocol; got {options.protocol}. Make a file of each.")
    with watch() as progress:
        make_statistics(options.images, options.out, judging, progress)
    return 0


def _judging(options: argparse.Namespace, metrics: str) -> "Judging":
    from davae.tools.judge import Judging

    weights = dict(_pair(given) for given in options.weights)
    return Judging(
        metrics=names_of(options.metrics or metrics),
        protocols=_protocols(options.protocol or "adm"),
        weights=weights,
        allow_download=options.download,
        is_strict=options.strict,
        count=options.count,
        batch_size=32 if options.batch_size is None else options.batch_size,
        folder=options.features,
        kind=getattr(options, "kind", None) or "",
        categories=getattr(options, "categories", None),
        prompts=getattr(options, "prompts", None),  # statistics of a reference have none
    )


def _protocols(text: str) -> "list[Protocol]":
    from davae.evaluate.spaces.resize import PROTOCOLS

    names = list(dict.fromkeys(names_of(text)))
    if unknown := [name for name in names if name not in PROTOCOLS]:
        close = get_close_matches(unknown[0], PROTOCOLS, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"Unknown protocol '{unknown[0]}'.{hint} Allowed: {', '.join(PROTOCOLS)}.")
    return [name for name in PROTOCOLS if name in names]


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
        "evaluate --images DRAWN --reference MJHQ --categories meta_data.json --protocol clean": "MJHQ-30K",
        "evaluate --images DRAWN --prompts prompts.txt --metrics solids-accuracy": "drawn solids",
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
