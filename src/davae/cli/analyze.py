"""`davae analyze`."""

import argparse

from davae.cli.grammar import Verb, path
from davae.cli.quiet import quieten


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokenizer", type=path, metavar="TOKENIZER", help="folder of a trained AutoencoderDA")
    parser.add_argument("folder", metavar="FOLDER", help="images or tar shards not trained on, or 'solids'")
    parser.add_argument("--size", type=int, help="side of the images, pixels (default: that of the tokenizer's run)")
    parser.add_argument("--images", type=int, default=256, help="images at most (default: 256)")
    parser.add_argument("--compare", type=path, nargs="+", default=[], metavar="OTHER", help="tokenizers beside it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="where the report goes")


def _run(options: argparse.Namespace) -> int:
    quieten()
    from davae.cli.terminal import watch
    from davae.tools.analyze import analyze

    with watch() as progress:
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
    return 0


VERB = Verb(
    "what a tokenizer's latent holds: sensitivity, spectra, alignment, components",
    _add_analyze,
    _run,
    {
        "analyze runs/x/tokenizer PHOTOS --out latent": "a page about one latent, on images not trained on",
        "analyze runs/a/tokenizer PHOTOS --compare runs/b/tokenizer --out both": "two of them on the same axes",
    },
)
