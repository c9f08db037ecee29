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
from davae.core.precision import SHORT_DTYPES
from davae.data.prompt_list import read_prompts
from davae.evaluate.similarity import psnr
from davae.sampling.engine import Engine
from davae.sampling.settings import SamplerSettings
from davae.sampling.step_cache import disable_step_cache, enable_step_cache, parse_step_cache
from davae.sampling.text_sampler import EncodedPrompts, TextSampler, TypedPrompts
from davae.tools.generate.text_source import SavedPipeline

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
class Result:
    """Images of all prompts, and what they cost."""

    latents: Tensor
    images: Tensor | None
    cost: Cost


@torch.no_grad()
def draw(sampler: TextSampler, count: int, has_images: bool) -> Result:
    """One image a prompt, one at a time."""
    pipe = sampler.pipeline
    with measured(pipe.transformer, pipe._execution_device) as cost:
        latents = [sampler.latents([index]) for index in range(count)]
    images = torch.cat(list(map(sampler.images, latents))) if has_images else None
    return Result(torch.cat(latents).cpu(), images, cost)


def geometry(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, EncodedPrompts]:
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

    def text(count: int) -> dict[str, Tensor]:
        return {
            "prompt_embeds": torch.randn(count, TEXT_TOKENS, config["joint_attention_dim"]),
            "pooled_prompt_embeds": torch.randn(count, config["pooled_projection_dim"]),
        }

    names = [f"random text {number}" for number in range(arguments.count)]
    return pipe, EncodedPrompts(names, text(arguments.count), text(1))


def saved(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, TypedPrompts]:
    """A trained pipeline and its prompts."""
    engine = Engine(dtype=arguments.dtype)
    pipe = engine.start(SavedPipeline(arguments.pipeline).load(engine, device), device)
    return pipe, TypedPrompts(pipe, read_prompts(arguments.prompts)[: arguments.count], arguments.max_length)


def row(name: str, result: Result, full: Result) -> str:
    """One line of the table."""
    left_out = 1 - result.cost.multiplications / full.cost.multiplications
    peak = full.latents.max() - full.latents.min()
    latent = psnr(full.latents / peak + 0.5, result.latents / peak + 0.5).mean()
    image = "" if full.images is None or result.images is None else f"{psnr(full.images, result.images).mean():.2f}"
    seconds = result.cost.seconds / len(result.latents)
    speed = full.cost.seconds / result.cost.seconds
    return f"| {name} | {seconds:.2f} | {speed:.2f} | {100 * left_out:.0f}% | {latent:.2f} | {image} |"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument("--dtype", choices=SHORT_DTYPES, help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args(words)
    if arguments.pipeline and not arguments.prompts:
        parser.error("--pipeline needs --prompts FILE")
    arguments.caches = [(name, *parse_step_cache(name)) for name in arguments.caches.split(",")]
    return arguments


def main(arguments: argparse.Namespace) -> None:
    """Draw and print a Markdown table."""
    device = torch.device(arguments.device)
    arguments.torch_dtype = SHORT_DTYPES[Engine(dtype=arguments.dtype).dtype_on(device)]
    pipe, prompts = (saved if arguments.pipeline else geometry)(arguments, device)
    settings = SamplerSettings(steps=arguments.steps, guidance_scale=arguments.guidance, seed=arguments.seed)
    sampler = TextSampler(pipe, settings, prompts, (arguments.size, arguments.size))
    count, has_images = len(prompts.prompts), arguments.pipeline is not None

    full = draw(sampler, count, has_images)
    print("| cache | s an image | faster | left out | PSNR latent (dB) | PSNR image (dB) |")
    print("|---|---|---|---|---|---|")
    print(f"| none | {full.cost.seconds / count:.2f} | 1.00 | 0% | | |")
    for name, kind, value in arguments.caches:
        enable_step_cache(pipe, kind, value)
        print(row(name, draw(sampler, count, has_images), full), flush=True)
        disable_step_cache(pipe)
    source = arguments.pipeline or f"SD3.5-Medium's geometry, {arguments.depth} blocks, random weights"
    print(f"\n{source}; {arguments.size} px, {arguments.steps} steps, guidance {arguments.guidance}, {count} images,")
    print(
        f"{arguments.torch_dtype} on {device}." + ("" if has_images else " Random weights say nothing about quality.")
    )


if __name__ == "__main__":
    main(parse())
