"""What step caches save and cost: forward time, work left out, and how far the image moves.

    python benchmarks/step_cache.py --pipeline FOLDER --prompts prompts.txt --count 8   # SD3 or FLUX.1
    python benchmarks/step_cache.py --depth 6 --size 512 --steps 20                     # geometry alone

Each image is drawn in full and then with each cache from the same seed, one at a time. "left out" is the share of
multiplications in the linear layers of the blocks that are not done. PSNR is against the image drawn in full; of the
latent, with the range of the full one as its peak.

Without --pipeline it is SD3.5-Medium's geometry, upgraded (32 channels, f16), at a reduced depth, with random weights
and random text. That shows the time a cache takes and saves; it says next to nothing about quality, because random
weights do not draw: neither how much neighbouring steps agree nor what the eye would miss is that of a trained model.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import davae
from davae.backbones.public import PUBLIC
from davae.data.prompt_list import read_prompts
from davae.evaluate.metrics import psnr
from davae.sampling.step_cache import disable_step_cache, enable_step_cache, parse_step_cache
from davae.sampling.text import decode, default_length, draw_encoded, encode, needs_negatives
from davae.stages.generate.engine import DTYPES
from davae.stages.generate.source import Engine, SavedPipeline

CACHES = "first-block=0.05,first-block=0.1,first-block=0.2,taylorseer=2,taylorseer=3,taylorseer=4,pyramid=2,pyramid=3"
TEXT_TOKENS = 77 + 256


@dataclass
class Cost:
    """Of the transformer's forwards."""

    seconds: float = 0.0
    multiplications: int = 0


@contextmanager
def measured(transformer: Any, device: torch.device) -> Iterator[Cost]:
    """Time of the transformer and multiplications in the linear layers of its blocks."""
    cost, started = Cost(), [0.0]

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def begin(*_: Any) -> None:
        started[0] = now()

    def end(*_: Any) -> None:
        cost.seconds += now() - started[0]

    def count(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        cost.multiplications += output.numel() * layer.in_features

    blocks = [part for name, part in transformer.named_modules() if "transformer_blocks." in name]
    hooks = [layer.register_forward_hook(count) for layer in blocks if isinstance(layer, nn.Linear)]
    hooks += [transformer.register_forward_pre_hook(begin), transformer.register_forward_hook(end)]
    try:
        yield cost
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Drawn:
    """Images of all prompts, and what they cost."""

    latents: Tensor
    images: Tensor | None
    cost: Cost


@torch.no_grad()
def draw(pipe: Any, texts: list[tuple[Any, Any]], arguments: argparse.Namespace, has_images: bool) -> Drawn:
    """One image a text, one at a time."""
    latents = []
    with measured(pipe.transformer, pipe._execution_device) as cost:
        for seed, (conditions, negatives) in enumerate(texts, arguments.seed):
            latents.append(
                draw_encoded(
                    pipe,
                    conditions,
                    negatives,
                    [seed],
                    height=arguments.size,
                    width=arguments.size,
                    steps=arguments.steps,
                    guidance_scale=arguments.guidance,
                )
            )
    images = torch.cat([decode(pipe, latent) for latent in latents]) if has_images else None
    return Drawn(torch.cat(latents).float().cpu(), images, cost)


def geometry(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, list[tuple[Any, Any]]]:
    """SD3.5-Medium at a reduced depth, upgraded, random weights, random text. The autoencoder only gives sizes."""
    torch.manual_seed(arguments.seed)
    full = PUBLIC["SD3.5-Medium"].config
    dual = tuple(range(len(full["dual_attention_layers"]) * arguments.depth // full["num_layers"]))
    config = {**full, "num_layers": arguments.depth, "dual_attention_layers": dual}
    transformer = diffusers.SD3Transformer2DModel(**config).to(arguments.torch_dtype).eval()
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" in name and name.endswith("linear.weight"):  # gates that are not all but closed
                weight.add_(0.02 * torch.randn_like(weight))
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKL(
        latent_channels=16, block_out_channels=(32,) * 4, scaling_factor=1.5305, shift_factor=0.0609, **kinds
    )
    parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(parts),
    )
    pipe = davae.upgrade(pipe, scale=2, init="random").to(device)

    def text() -> dict[str, Tensor]:
        return {
            "prompt_embeds": torch.randn(1, TEXT_TOKENS, config["joint_attention_dim"]),
            "pooled_prompt_embeds": torch.randn(1, config["pooled_projection_dim"]),
        }

    return pipe, [(text(), text()) for _ in range(arguments.count)]


def saved(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, list[tuple[Any, Any]]]:
    """A trained pipeline and encoded prompts."""
    engine = Engine(dtype=arguments.dtype)
    pipe = engine.start(SavedPipeline(arguments.pipeline).load(engine, device), device)
    length = arguments.max_length or default_length(pipe)
    prompts = read_prompts(arguments.prompts)[: arguments.count]
    guided = needs_negatives(pipe, arguments.guidance)
    negatives = encode(pipe, [""], length) if guided else None
    return pipe, [(encode(pipe, [prompt], length), negatives) for prompt in prompts]


def row(name: str, drawn: Drawn, full: Drawn) -> str:
    """One line of the table."""
    work = 1 - drawn.cost.multiplications / full.cost.multiplications
    peak = full.latents.max() - full.latents.min()
    latent = psnr(full.latents / peak + 0.5, drawn.latents / peak + 0.5).mean()
    image = "" if full.images is None or drawn.images is None else f"{psnr(full.images, drawn.images).mean():.2f}"
    seconds = drawn.cost.seconds / len(drawn.latents)
    speed = full.cost.seconds / drawn.cost.seconds
    return f"| {name} | {seconds:.2f} | {speed:.2f} | {100 * work:.0f}% | {latent:.2f} | {image} |"


def main() -> None:
    """Read the command line, draw, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", help="folder or hub id of a trained pipeline (default: geometry alone)")
    parser.add_argument("--prompts", type=Path, help="file of prompts, for --pipeline")
    parser.add_argument("--caches", default=CACHES, help="kinds with their numbers, by commas")
    parser.add_argument("--depth", type=int, default=6, help="blocks of the geometry (default: 6 of 24)")
    parser.add_argument("--size", type=int, default=512, help="side of the images, pixels")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--max-length", type=int, help="tokens of the long text encoder")
    parser.add_argument("--count", type=int, default=1, help="images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.pipeline and not arguments.prompts:
        parser.error("--pipeline needs --prompts FILE")
    caches = [(name, *parse_step_cache(name)) for name in arguments.caches.split(",")]  # refused before the work
    device = torch.device(arguments.device)
    arguments.torch_dtype = DTYPES[Engine(dtype=arguments.dtype).dtype_on(device)]
    pipe, texts = (saved if arguments.pipeline else geometry)(arguments, device)
    pipe.set_progress_bar_config(disable=True)

    has_images = arguments.pipeline is not None
    full = draw(pipe, texts, arguments, has_images)
    print("| cache | s an image | faster | left out | PSNR latent (dB) | PSNR image (dB) |")
    print("|---|---|---|---|---|---|")
    print(f"| none | {full.cost.seconds / len(texts):.2f} | 1.00 | 0% | | |")
    for name, kind, value in caches:
        enable_step_cache(pipe, kind, value)
        print(row(name, draw(pipe, texts, arguments, has_images), full), flush=True)
        disable_step_cache(pipe)
    what = arguments.pipeline or f"SD3.5-Medium's geometry, {arguments.depth} blocks, random weights"
    print(
        f"\n{what}; {arguments.size} px, {arguments.steps} steps, guidance {arguments.guidance}, {len(texts)} images,"
    )
    print(f"{arguments.torch_dtype} on {device}. Random weights say nothing about quality." if not has_images else "")


if __name__ == "__main__":
    main()
