"""`davae upscale`."""

import argparse
from pathlib import Path

from davae.cli.grammar import Verb

SPEC_HELP = "bilinear, bicubic, catmull-rom, lanczos, esrgan:FILE, spandrel:FILE, or command:'PROGRAM ...'"


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="folder of images, tar shards, or an npz with arr_0")
    parser.add_argument("out", type=Path, metavar="OUT", help="where the same names go, as .png; goes on there")
    parser.add_argument("--size", type=int, required=True, help="of the shorter side, pixels; the shape is kept")
    parser.add_argument("--with", dest="spec", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of a network")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds of a program's call (default: 3600)")


def _run(options: argparse.Namespace) -> int:
    from davae.cli.terminal import watch
    from davae.core.precision import SHORT_DTYPES
    from davae.sampling.upscaling import open_upscaler
    from davae.tools.upscale import upscale

    upscaler = open_upscaler(options.spec, dtype=SHORT_DTYPES[options.dtype], timeout=options.timeout)
    with watch() as progress:
        out = upscale(options.source, options.out, options.size, upscaler, progress)
        progress.say(f"images: {out.resolve()}")
    return 0


VERB = Verb(
    "enlarge a folder of images by a filter, a super-resolution network or another program",
    _add_upscale,
    _run,
    {
        "upscale drawn large --size 1024 --with esrgan:RealESRGAN_x4plus.pth": "Real-ESRGAN, reduced to the size",
        "upscale drawn large --size 1024 --with command:'sr --in {input} --out {output} --size {size}'": "a program",
    },
)
