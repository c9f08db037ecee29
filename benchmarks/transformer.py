"""LightningDiT's training step and forward pass against a plain implementation of the same function.

    python benchmarks/transformer.py                                      a CPU: a small model, fp32
    python benchmarks/transformer.py --size XL --batch 32 --precision bf16 --compile      a GPU
    python benchmarks/transformer.py --profile                            where the time of our step goes

"plain" is what one writes first: three projections for queries, keys and values, attention with an explicit softmax,
RMSNorm in Python, two projections where SwiGLU has one, modulation step by step. It carries the same weights, and the
two must agree within 1e-4 of the largest output before anything is timed. Passes of the two alternate, and the
fastest of each counts, because the machine may be busy.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import davae
from davae.evaluate.hardware import hardware
from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT, LightningDiTBlock

SIZES = {"small": {"hidden_size": 384, "num_layers": 6, "num_attention_heads": 6}, **LIGHTNINGDIT_SIZES}
TOLERANCE = 1e-4


class PlainNorm(nn.Module):
    """RMSNorm, step by step in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return wide.to(x.dtype) * self.weight


class PlainBlock(nn.Module):
    """A LightningDiT block without fused projections and without fused attention."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = PlainNorm(width), PlainNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, width)
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, conditioning: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, N, D], [B, D] -> [B, N, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning)[:, None].chunk(6, dim=-1)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y, cos, sin)
        y = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.w3(nn.functional.silu(self.w1(y)) * self.w2(y))

    def attention(self, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        q, k, v = (layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of [B, heads, N, head_dim], pair by pair."""
    across = torch.empty_like(x)
    across[..., 0::2], across[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return (x * cos + across * sin).to(x.dtype)


class Plain(nn.Module):
    """A LightningDiT with plain blocks; embedders and final layer are copies of the model's own."""

    def __init__(self, model: LightningDiT) -> None:
        super().__init__()
        self.model = model
        self.blocks = nn.ModuleList(plain_block(block) for block in model.blocks)

    def forward(self, latent: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """As LightningDiT's, a tensor."""
        model, rope = self.model, self.model.feat_rope
        x = model.x_embedder(latent) + model.pos_embed
        conditioning = model.t_embedder(time, latent.dtype) + model.y_embedder(labels)
        for block in self.blocks:
            x = block(x, conditioning, rope.freqs_cos, rope.freqs_sin)
        return model._unpatchify(model.final_layer(x, conditioning))


def plain_block(block: LightningDiTBlock) -> PlainBlock:
    """The same weights in a `PlainBlock`."""
    width, hidden = block.attn.proj.in_features, block.mlp.w3.in_features
    plain = PlainBlock(width, block.attn.num_heads, hidden)
    pairs = {
        plain.proj: block.attn.proj,
        plain.w3: block.mlp.w3,
        plain.modulation[1]: block.adaLN_modulation[1],
        plain.norm1: block.norm1,
        plain.norm2: block.norm2,
    }
    for target, source in pairs.items():
        target.load_state_dict(source.state_dict())
    for fused, parts in ((block.attn.qkv, (plain.q, plain.k, plain.v)), (block.mlp.w12, (plain.w1, plain.w2))):
        weights, biases = fused.weight.chunk(len(parts)), fused.bias.chunk(len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            part.load_state_dict({"weight": weight, "bias": bias})
    return plain


def pair(arguments: argparse.Namespace, device: torch.device) -> tuple[LightningDiT, Plain, list[Tensor]]:
    """Ours, the plain one, and a batch for both."""
    torch.manual_seed(0)
    side, channels = arguments.sample_size, arguments.channels
    model = davae.LightningDiT(sample_size=side, in_channels=channels, **SIZES[arguments.size])
    with torch.no_grad():  # what starts at zero would hide a difference
        for layer in [*model.blocks, model.final_layer]:
            layer.adaLN_modulation[1].weight.normal_(std=0.02)
        model.final_layer.linear.weight.normal_(std=0.02)
    latent = torch.randn(arguments.batch, channels, side, side)
    time_, labels = torch.rand(arguments.batch), torch.randint(0, 1000, (arguments.batch,))
    # A copy: the plain model trains embedders and head of its own.
    copy = LightningDiT.from_config(model.config)
    copy.load_state_dict(model.state_dict())
    plain = Plain(copy)
    del copy.blocks
    return model.to(device), plain.to(device), [tensor.to(device) for tensor in (latent, time_, labels)]


def agreement(ours: LightningDiT, plain: Plain, batch: list[Tensor]) -> float:
    """Largest difference of the outputs, relative to the largest output.

    Raises:
        AssertionError: it is more than `TOLERANCE`.
    """
    with torch.no_grad():
        want = plain(*batch)
        difference = ((ours(*batch).sample - want).abs().max() / want.abs().max()).item()
    assert difference <= TOLERANCE, f"the two differ by {difference:.1e} of the largest output"
    return difference


def passes(
    run: Callable[..., Any], model: nn.Module, batch: list[Tensor], bf16: bool
) -> dict[str, Callable[[], None]]:
    """A forward pass without gradients, and a forward and backward pass."""
    device = batch[0].device.type

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            run(*batch)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = run(*batch).float().square().mean()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return {"forward": forward, "step": step}


def alternate(runs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Fastest seconds and, on a GPU, peak memory of each, in turn after a warm-up."""
    best: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            if number and seconds < best.get(name, {}).get("seconds", float("inf")):
                best[name] = {"seconds": seconds}
                if device.type == "cuda":
                    best[name]["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
    return best


def profile(run: Callable[[], None]) -> None:
    """Operators of one call by their own time."""
    run()
    with torch.profiler.profile(record_shapes=True) as profiler:
        run()
    order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=18, max_name_column_width=50))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Agreement, seconds of every case and ratios."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours, plain, batch = pair(arguments, device)
    difference = agreement(ours, plain, batch)
    calls: dict[str, tuple[Callable[..., Any], nn.Module]] = {
        "ours": (lambda *inputs: ours(*inputs).sample, ours),
        "plain": (plain, plain),
    }
    if arguments.compile:
        compiled = torch.compile(ours.forward)
        calls["ours, compiled"] = (lambda *inputs: compiled(*inputs).sample, ours)
        calls["plain, compiled"] = (torch.compile(plain.forward), plain)
    bf16 = arguments.precision == "bf16"
    runs = {
        f"{kind} {name}": run
        for name, (call, model) in calls.items()
        for kind, run in passes(call, model, batch, bf16).items()
    }
    if arguments.profile:
        profile(runs["step ours"])
    best = alternate(runs, arguments.rounds, device)
    ratios = {
        kind: best[f"{kind} plain"]["seconds"] / best[f"{kind} ours"]["seconds"] for kind in ("forward", "step")
    }
    return {"difference": difference, "cases": best, "ratios": ratios}


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=sorted(SIZES))
    parser.add_argument("--sample-size", type=int, default=16, help="tokens a side")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "bf16"), help="bf16 is autocast, as in training"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="also both of them through torch.compile")
    parser.add_argument("--profile", action="store_true", help="print the operators of our step")
    return parser.parse_args(given)


def main() -> int:
    """Print the table and the ratios."""
    arguments = parse()
    print(json.dumps(hardware()))
    print(json.dumps(vars(arguments)))
    result = measure(arguments)
    print(f"outputs differ by {result['difference']:.1e} of the largest")
    for name, row in result["cases"].items():
        memory = f"  {row['peak_gb']:6.2f} GB peak" if "peak_gb" in row else ""
        print(f"{name:<24} {1000 * row['seconds']:9.1f} ms{memory}")
    for kind, ratio in result["ratios"].items():
        print(f"{kind}: ours is {ratio:.2f} times as fast as plain")
    return 0


if __name__ == "__main__":
    sys.exit(main())
