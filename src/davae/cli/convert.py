"""`davae convert`."""

import argparse
import sys

from davae.cli.grammar import Verb, path
from davae.cli.quiet import quieten

KINDS = ("davae-sd3", "davae-imagenet", "ldm", "tae", "lightningdit", "dit", "sit", "repa")
"""Those of `davae.convert.dispatch`, which costs an import."""


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", type=path, nargs="+", metavar="FILE", help="checkpoint; two for TAESD's family")
    parser.add_argument("--to", type=path, required=True, metavar="FOLDER", help="new folder of the diffusers model")
    parser.add_argument(
        "--kind",
        default="auto",
        choices=("auto", *KINDS),
        metavar="KIND",
        help=f"layout of the checkpoint: {', '.join(KINDS)} (default: found by its keys)",
    )
    parser.add_argument("--base", type=path, help="the base autoencoder, where the checkpoint lacks its decoder")
    parser.add_argument("--statistics", type=path, help="latent mean and std: .pt, .safetensors or .json")
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
    transformer.add_argument("--vae", type=path, metavar="PATH", help="a LightningDiT's autoencoder: write the pair")
    transformer.add_argument("--time-shift", type=float, help="of the pair's scheduler (default: 0.3)")


def _run(options: argparse.Namespace) -> int:
    quieten()
    from davae.tools.convert import convert_checkpoint

    convert_checkpoint(
        options.sources,
        options.to,
        lambda message: print(message, file=sys.stderr),  # noqa: T201
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
    return 0


VERB = Verb(
    "bring a checkpoint of another code base in as a diffusers model",
    _add_convert,
    _run,
    {
        "convert vavae.pt --statistics latents_stats.pt --to vavae": "VA-VAE; its layout is found by its keys",
        "convert davae.ckpt --base vavae --to davae-f32c128": "the authors' DA-VAE over its base",
        "convert taef2_encoder.pth taef2_decoder.pth --to taef2": "TAESD's family, in two files",
        "convert lightningdit-xl.pt --vae vavae --to pair": "a transformer and its autoencoder as one pipeline",
    },
)
