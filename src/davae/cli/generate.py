"""`davae generate`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from davae.cli.grammar import Verb, path, path_or_name
from davae.cli.quiet import quieten
from davae.cli.recipe import add_common, load
from davae.cli.upscale import SPEC_HELP

if TYPE_CHECKING:
    from davae.recipe import Recipe
    from davae.tools.generate.text_source import TextSource


_UPGRADED_PAIR = ""
"""The pair that a run upgraded, as a baseline."""


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="what is drawn; or --prompts")
    parser.add_argument("--prompts", type=path, metavar="FILE", help=".txt, .jsonl or .tsv: captioned tar shards")
    parser.add_argument(
        "--from",
        dest="source",
        type=path_or_name,
        required=True,
        metavar="PIPELINE",
        help="saved pipeline: its folder or hub name; or a finished run: its folder or recipe",
    )
    parser.add_argument("--out", type=path, required=True, metavar="FOLDER", help="where images go; goes on there")
    what = parser.add_argument_group("images")
    what.add_argument("--size", type=int, help="side, pixels (default: the pipeline's)")
    what.add_argument("--height", type=int, help="pixels, in place of --size")
    what.add_argument("--width", type=int, help="pixels, in place of --size")
    what.add_argument("--steps", type=int, default=30, help="of the sampler (default: 30)")
    what.add_argument("--guidance", type=float, default=2.5, help="1 is off (default: 2.5)")
    what.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("START", "END"),
        help="times with guidance, 0 = noise, 1 = data (default: 0 1)",
    )
    what.add_argument("--negative", default="", metavar="PROMPT", help="what guidance leads away from")
    what.add_argument("--max-length", type=int, help="tokens of the long text encoder (default: the pipeline's)")
    what.add_argument("--seed", type=int, default=0, help="of the first image (default: 0)")
    what.add_argument("--count", type=int, default=1, help="images a prompt (default: 1)")
    what.add_argument("--preview", action="store_true", help="also the base channels alone, of the same latent")
    what.add_argument(
        "--baseline",
        nargs="?",
        const=_UPGRADED_PAIR,
        type=path_or_name,
        metavar="PIPELINE",
        help="also the pretrained pipeline's images, enlarged (default: the one that the run upgraded)",
    )
    what.add_argument(
        "--upscale", metavar="SPEC", help=f"how the baseline is enlarged: {SPEC_HELP} (default: bicubic)"
    )
    kept = parser.add_argument_group("how they are kept")
    kept.add_argument("--shards", action=argparse.BooleanOptionalAction, help="tar shards (default: with --prompts)")
    kept.add_argument("--shard-size", type=int, default=256, help="images a shard (default: 256)")
    kept.add_argument("--format", choices=("png", "jpg"), default="png")
    how = parser.add_argument_group("how they are drawn")
    how.add_argument("--batch", type=int, default=4, help="images at once (default: 4)")
    how.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: bf16, on a CPU fp32")
    how.add_argument("--quantize", choices=("fp8", "int8", "nf4"), help="int8 and nf4 need bitsandbytes")
    how.add_argument("--offload", choices=("model", "sequential", "group"), help="weights wait in the CPU's memory")
    how.add_argument("--compile", action="store_true", help="torch.compile the transformer")
    how.add_argument("--step-cache", metavar="KIND[=N]", help="first-block, taylorseer or pyramid")
    add_common(parser)


def _run(options: argparse.Namespace) -> int:
    given = _recipe_of(options)
    quieten()
    from davae.cli.terminal import watch
    from davae.data.prompt_list import read_prompts
    from davae.sampling.engine import Engine
    from davae.sampling.upscaling import open_upscaler
    from davae.tools.generate.generate import generate
    from davae.tools.generate.settings import Generation

    if bool(options.prompt) == bool(options.prompts):
        raise ValueError("generate takes prompts, or --prompts FILE. 'davae generate --help' shows both.")
    if options.size and (options.height or options.width):
        raise ValueError("generate takes --size, or --height and --width; got both.")
    settings = Generation(
        height=options.height or options.size,
        width=options.width or options.size,
        steps=options.steps,
        guidance=options.guidance,
        guidance_interval=tuple(options.guidance_interval),
        negative=options.negative,
        max_length=options.max_length,
        seed=options.seed,
        count=options.count,
        batch=options.batch,
        preview=options.preview,
        shards=bool(options.prompts) if options.shards is None else options.shards,
        shard_size=options.shard_size,
        form=options.format,
    )
    engine = Engine(
        dtype=options.dtype,
        quantize=options.quantize,
        offload=options.offload,
        compile=options.compile,
        step_cache=options.step_cache,
    )
    prompts = read_prompts(options.prompts) if options.prompts else options.prompt
    upscaler = open_upscaler(options.upscale) if options.upscale else None
    with watch() as progress:
        source, baseline = _sources(options, given)
        out = generate(
            source, prompts, options.out, settings, engine, baseline=baseline, upscaler=upscaler, observer=progress
        )
        progress.say(f"images: {out.resolve()}")
    return 0


def _recipe_of(options: argparse.Namespace) -> "tuple[Recipe, Path] | None":
    """Recipe and place of the run that is to draw; None of a pipeline."""
    from davae.recipe import run_folder, shipped_recipes

    source = options.source
    is_recipe = source.endswith((".yaml", ".yml")) or (source in shipped_recipes() and not Path(source).exists())
    if not is_recipe and run_folder(source) is None:
        return None
    options.recipe = source
    return load(options)


def _sources(
    options: argparse.Namespace, given: "tuple[Recipe, Path] | None"
) -> "tuple[TextSource, TextSource | None]":
    """What draws, and the baseline."""
    from davae.run.run import Run
    from davae.tools.generate.text_source import FinishedRun, SavedPipeline

    named = SavedPipeline(options.baseline) if options.baseline else None
    if given is None:
        if options.baseline == _UPGRADED_PAIR:
            raise ValueError("--baseline needs the name of the pretrained pipeline, unless --from is a run.")
        return SavedPipeline(options.source), named
    run = Run(*given)
    return FinishedRun(run), SavedPipeline(run.pair.source) if options.baseline == _UPGRADED_PAIR else named


VERB = Verb(
    "images from prompts by a saved pipeline: pictures, or captioned tar shards",
    _add_generate,
    _run,
    {
        "generate 'a red fox in fresh snow' --from runs/sd35m-1k --out fox --count 4": "four images of one prompt",
        "generate 'a lighthouse' --from runs/sd35m-1k --out l --baseline": "beside the pretrained pair's, enlarged",
        "generate 'a pier' --from runs/sd35m-1k --out p --baseline --upscale esrgan:x4plus.pth": "by Real-ESRGAN",
        "generate --prompts prompts.txt --from sd35m-1024 --out drawn": "a captioned data set in tar shards",
    },
)
