"""What a structured autoencoder costs: training step, encode, decode and peak memory, each case in its own process.

    python benchmarks/tokenizer.py                          every case of the default geometry
    python benchmarks/tokenizer.py --geometry sd3 --size 1024 --cases decode,decode-tiled
    python benchmarks/tokenizer.py seam                     tiled against whole decoding

Weights are random: time and memory do not depend on them. Ratios are taken within one run, cases in turn several
times over and the fastest pass of each, because the machine may be busy. "authors" is a plain re-implementation of
the reference's training step: fp32, channels first, four partial backward passes for its two adaptive weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise, repeat
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor

import davae
from davae.backbones.features import BlockFeatures
from davae.core.losses import alignment, hinge_discriminator, hinge_generator, kl_divergence
from davae.evaluate.hardware import hardware
from davae.train.generative_alignment import GenerativeAlignment
from davae.train.loop import train
from davae.train.objective import (
    AdversarialConfig,
    AutoencoderConfig,
    GenerativeAlignConfig,
    PyramidConfig,
    ReconstructionConfig,
    SpectrumConfig,
    TokenizerConfig,
)
from davae.train.reconstructor import PlainReconstructor, UpgradedReconstructor
from davae.train.tokenizer import TokenizerTask

KL = {
    "small": {"block_out_channels": (32, 64, 128), "latent_channels": 16, "layers_per_block": 1, "f": 4},
    "sd3": {"block_out_channels": (128, 256, 512, 512), "latent_channels": 16, "layers_per_block": 2, "f": 8},
    "vavae": {"block_out_channels": (128, 128, 256, 256, 512), "latent_channels": 32, "layers_per_block": 2, "f": 16},
}
"""KL autoencoders without quant convs; f is their compression."""

DETAIL = {"small": 16, "sd3": 16, "vavae": 96}
"""D of the upgrade by 2."""

TRAINING = {
    "train": "this library: bf16 autocast, channels last, adaptive weights measured every step",
    "train-every-10": "adaptive weights measured every 10 steps",
    "train-fixed": "fixed weights",
    "train-fp32": "this library in fp32",
    "train-checkpointing": "gradient checkpointing",
    "train-base": "the base autoencoder's own training at the same resolution, same objective without alignment",
    "train-authors": "plain re-implementation of the reference's step",
    "train-l1": "L1, KL and alignment of a fixed weight, no discriminator",
    "train-pyramid": "the same with a Laplacian pyramid of 3 levels beside L1",
    "train-spectrum": "the same with the Fourier transform beside L1",
    "train-generative": "the same aligned by 4 blocks of a frozen LightningDiT of width 256, weight fixed",
    "train-generative-adaptive": "the same, weight measured every step",
}
BESIDE_L1: dict[str, dict[str, Any]] = {
    "train-l1": {},
    "train-pyramid": {"pyramid": PyramidConfig()},
    "train-spectrum": {"spectrum": SpectrumConfig()},
    "train-generative": {"generative_alignment": GenerativeAlignConfig(adaptive=False)},
    "train-generative-adaptive": {"generative_alignment": GenerativeAlignConfig()},
}
INFERENCE = {
    "encode": "moments, bf16",
    "encode-fp32": "moments, fp32",
    "encode-base": "the base encoder at the same resolution, bf16",
    "decode": "bf16 weights, channels last",
    "decode-channels-first": "bf16 weights, channels first",
    "decode-fp32": "fp32 weights",
    "decode-sliced": "one image at a time",
    "decode-tiled": "tiles of 512 px",
    "decode-base": "the base decoder at the same resolution, bf16",
}


def base(geometry: str) -> AutoencoderKL:
    """A base autoencoder with random weights."""
    shape = KL[geometry]
    levels = len(shape["block_out_channels"])
    return AutoencoderKL(
        block_out_channels=shape["block_out_channels"],
        latent_channels=shape["latent_channels"],
        layers_per_block=shape["layers_per_block"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
    )


def upgraded(geometry: str) -> davae.AutoencoderDA:
    """Its upgrade, calibrated with made-up statistics."""
    model = davae.AutoencoderDA.from_base(base(geometry), scale=2, detail_channels=DETAIL[geometry])
    channels = model.layout.detail_channels
    model.calibrate(torch.zeros(channels), torch.ones(channels))
    return model


def training(case: str, arguments: argparse.Namespace, device: torch.device) -> list[float]:
    """Seconds of each optimizer step of a case, the first one left out."""
    torch.manual_seed(0)
    side, batch = arguments.size, arguments.batch
    images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    if case == "train-authors":
        return timed(authors_step(upgraded(arguments.geometry).to(device), images), arguments.passes, device)
    is_fixed, is_judged = case == "train-fixed" or case in BESIDE_L1, case not in BESIDE_L1
    settings: dict[str, Any] = {
        "steps": arguments.passes + 1,
        "batch_size": batch,
        "precision": "fp32" if case == "train-fp32" else "bf16",
        "adversarial": AdversarialConfig(start_step=0, adaptive=not is_fixed) if is_judged else None,
        "adaptive_every": 10 if case == "train-every-10" else 1,
        "gradient_checkpointing": case == "train-checkpointing",
        **BESIDE_L1.get(case, {}),
    }
    generative = None
    if case == "train-base":
        config: ReconstructionConfig = AutoencoderConfig(**settings)
        reconstructor: Any = PlainReconstructor(base(arguments.geometry), config, seed=0)
    else:
        config = TokenizerConfig(**settings, align_adaptive=not is_fixed)
        reconstructor = UpgradedReconstructor(upgraded(arguments.geometry), config, seed=0)
        if config.generative_alignment is not None:
            generative = alignment_by_transformer(reconstructor.network, config.generative_alignment, side, device)
    reconstructor.network.train()
    micro, stamps = {"image": images, "position": torch.arange(batch)}, []

    def stamp(_: int) -> None:
        _wait(device)
        stamps.append(time.process_time() if arguments.processor else time.perf_counter())

    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    task = TokenizerTask(reconstructor, config, generative=generative)
    train(task, lambda _: repeat([micro]), config, accelerator, hooks=[(1, stamp)])
    return [later - earlier for earlier, later in pairwise(stamps)]


def alignment_by_transformer(
    model: davae.AutoencoderDA, config: GenerativeAlignConfig, side: int, device: torch.device
) -> GenerativeAlignment:
    """Generation-aware alignment by a LightningDiT with random weights, for images of `side` px."""
    grid, channels = side // model.compression, model.layout.base_channels
    transformer = davae.LightningDiT(grid, in_channels=channels, hidden_size=256, num_layers=4, num_attention_heads=4)
    features = BlockFeatures(transformer.to(device, torch.bfloat16), config.block)
    return GenerativeAlignment(config, features, model.layout, scaling=None, seed=0)


def timed(run: Callable[[], None], passes: int, device: torch.device) -> list[float]:
    """Seconds of each of several calls, after one that does not count."""
    run()
    seconds = []
    for _ in range(passes):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def authors_step(model: davae.AutoencoderDA, images: Tensor) -> Callable[[], None]:
    """The reference's step as its code has it: fp32, channels first, norms by separate backward passes."""
    from davae.models.discriminator import PatchDiscriminator

    model.train()
    judge = PatchDiscriminator().to(images.device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    first = torch.optim.Adam(trained, lr=1e-4, betas=(0.5, 0.9))
    second = torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9))

    def norm(loss: Tensor, weight: Tensor) -> Tensor:
        return torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()

    def step() -> None:
        x = images.float() / 127.5 - 1
        grid = (len(x), model.layout.detail_channels, *(side // model.compression for side in x.shape[-2:]))
        output = model(x, torch.randn(grid, device=x.device))
        nll = (x - output.sample).abs().mean()
        pull = alignment(model.layout, output.detail, output.base)
        fooled = hinge_generator(judge(output.sample))
        total = nll + 1e-6 * kl_divergence(output.detail_mean, output.detail_logvar)
        ratio = norm(nll, model.last_weight) / (norm(fooled, model.last_weight) + 1e-4)
        total = total + 0.1 * ratio.clamp(0, 1e4).detach() * fooled
        ratio = norm(nll, model.detail_weight) / (norm(pull, model.detail_weight) + 1e-4)
        total = total + 0.5 * ratio.clamp(0, 1e8).detach() * pull
        first.zero_grad()
        total.backward()
        first.step()
        judged = hinge_discriminator(judge(x), judge(output.sample.detach()))
        second.zero_grad()
        judged.backward()
        second.step()

    return step


def inference(case: str, geometry: str, size: int, batch: int, device: torch.device) -> Callable[[], None]:
    """One pass of a case, as a function."""
    verb, _, variant = case.partition("-")
    model: Any = base(geometry) if variant == "base" else upgraded(geometry)
    dtype = torch.float32 if variant == "fp32" else torch.bfloat16
    layout = torch.contiguous_format if variant == "channels-first" else torch.channels_last
    model = model.to(device, dtype, memory_format=layout).eval()
    if variant == "sliced":
        model.enable_slicing()
    if variant == "tiled":
        model.enable_tiling()
        model.tile_sample_min_size = 512
    side = size // (KL[geometry]["f"] * (1 if variant == "base" else 2))
    if verb == "decode":
        channels = KL[geometry]["latent_channels"] + (0 if variant == "base" else DETAIL[geometry])
        latent = torch.randn(batch, channels, side, side, device=device, dtype=dtype).contiguous(memory_format=layout)
        return torch.no_grad()(lambda: model.decode(latent) and None)
    images = torch.randn(batch, 3, size, size, device=device, dtype=dtype).contiguous(memory_format=layout)
    encode = model.encode if variant == "base" else model.moments
    return torch.no_grad()(lambda: encode(images) and None)


def measure(arguments: argparse.Namespace) -> None:
    """The mean step or the fastest of several passes, and the peak memory of one case, as a line of JSON."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.case.startswith("train"):
        steps = training(arguments.case, arguments, device)
        seconds = sum(steps) / len(steps)  # a measurement of adaptive weights now and then belongs to the mean
    else:
        run = inference(arguments.case, arguments.geometry, arguments.size, arguments.batch, device)
        seconds = min(timed(run, arguments.passes, device))
    print(json.dumps({"seconds": seconds, "peak_gb": _peak(device)}))


def seam(arguments: argparse.Namespace) -> None:
    """How far tiled decoding of a smooth latent strays from decoding it whole, relative to the image's spread."""
    torch.manual_seed(0)
    model = upgraded(arguments.geometry).to(torch.bfloat16, memory_format=torch.channels_last).eval()
    side, channels = arguments.size // model.compression, model.layout.channels
    latent = torch.nn.functional.interpolate(
        torch.randn(1, channels, side // 4, side // 4), (side, side), mode="bicubic"
    )
    with torch.no_grad():
        whole = model.decode(latent.to(torch.bfloat16)).sample.float()
        model.enable_tiling()
        for tile in (arguments.size // 2, arguments.size * 3 // 4):
            model.tile_sample_min_size = tile
            error = (model.decode(latent.to(torch.bfloat16)).sample.float() - whole).abs() / whole.std()
            print(
                f"{arguments.geometry} {arguments.size} px, tiles of {tile} px: error mean {error.mean():.4f}, "
                f"largest {error.max():.3f} of the image's standard deviation"
            )


def table(arguments: argparse.Namespace) -> None:
    """Every case in turn, in its own process."""
    print(json.dumps(hardware()))
    print(f"geometry {arguments.geometry}, {arguments.size} px, batch {arguments.batch}")
    cases = arguments.cases.split(",") if arguments.cases else [*TRAINING, *INFERENCE]
    best: dict[str, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for case in cases:
            command = [sys.executable, __file__, "--case", case, "--geometry", arguments.geometry]
            for name in ("size", "batch", "passes"):
                command += [f"--{name}", str(getattr(arguments, name))]
            if arguments.processor:
                command.append("--processor")
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            if case not in best or row["seconds"] < best[case]["seconds"]:
                best[case] = row
    for case, row in best.items():
        rate = arguments.batch / row["seconds"]
        meaning = {**TRAINING, **INFERENCE}[case]
        print(f"{case:<22} {rate:8.2f} images/s  {row['peak_gb']:6.2f} GB peak   {meaning}")
    for first, second in (
        ("train", "train-authors"),
        ("train-every-10", "train-authors"),
        ("train-every-10", "train"),
        ("train-l1", "train-pyramid"),
        ("train-l1", "train-spectrum"),
        ("train-l1", "train-generative"),
        ("train-l1", "train-generative-adaptive"),
    ):
        if first in best and second in best:
            print(f"{first} is {best[second]['seconds'] / best[first]['seconds']:.2f} times as fast as {second}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="table", choices=("table", "seam"))
    parser.add_argument("--geometry", default="small", choices=sorted(KL))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processor", action="store_true", help="training: seconds of the processor, if it is busy")
    parser.add_argument("--cases", help="comma separated; all of them without it")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        measure(arguments)
    else:
        {"table": table, "seam": seam}[arguments.what](arguments)


if __name__ == "__main__":
    main()
