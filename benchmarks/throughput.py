"""Images a second, native against upgraded, and the other transformers of the paper's table, with random weights.

    python benchmarks/throughput.py                                 a GPU: every row, batch 10, whole images
    python benchmarks/throughput.py --rows sd35m-1k,sd35m-2k --text-encoders --compile --out runs/throughput.json
    python benchmarks/throughput.py --rows sd35m-1k --steps 1 --batch 1 --no-guidance      a CPU: a step and a decode

A row is chosen by the beginning of its name (`--list` shows them). Each runs the stock diffusers pipeline in a
process of its own, in bf16, on random prompt embeddings as long as those of a prompt, after a warm-up on a GPU.
Time and memory do not depend on what the weights are.

    DiT step    the transformer's fastest call, for the batch (twice it where guidance takes a second prediction)
    decode      the autoencoder, for the batch; images above 1024 px one by one
    2nd stage   what enlarges the 512 px images of Table S2's cascades, for the batch: bilinear, or --upscale SPEC
    text        the text encoders for prompts and negative prompts, with --text-encoders; else left out
    image       seconds an image: the whole call of the pipeline with all its steps ("run"), or, where --steps asks
                for fewer, the fastest step times the row's steps plus decode ("sum"); plus text
    memory      highest allocation of the GPU during that call; on a CPU the process's highest resident memory
    ratio       seconds an image of the native row by those of this one, both of this command; on a CPU a second
                ratio compares the processor's seconds of a step, which a busy machine changes less
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import torch.nn.functional as F
import transformers
from geometries import ROWS, Row
from random_weights import call_arguments, random_encoder, random_pipeline, tokens

from davae.core.pixels import unit_to_uint8
from davae.evaluate.hardware import hardware
from davae.evaluate.speed import peak_memory
from davae.sampling.upscaling import open_upscaler

DTYPE = torch.bfloat16
COLUMNS = (
    "model",
    "parameters",
    "tokens",
    "DiT step",
    "decode",
    "2nd stage",
    "text",
    "image",
    "images/s",
    "ratio",
    "memory",
)
COLUMNS += ("paper, A100",)
LARGE = 1024
"""Images with a longer side are decoded one by one."""


@dataclass
class Clock:
    """Seconds of every call of the functions that went through `timed`."""

    device: torch.device
    calls: dict[str, list[tuple[Any, Any]]] = field(default_factory=dict)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which leaves a mark before and after each call."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            before = self._mark()
            result = function(*arguments, **named)
            self.calls.setdefault(name, []).append((before, self._mark()))
            return result

        return call

    def seconds(self, name: str) -> list[float]:
        """Of each call, in order."""
        if self.device.type != "cuda":
            return [after[0] - before[0] for before, after in self.calls[name]]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in self.calls[name]]

    def processor_seconds(self, name: str) -> list[float] | None:
        """Of each call, summed over the cores; None on a GPU, which nobody else uses."""
        if self.device.type != "cuda":
            return [after[1] - before[1] for before, after in self.calls[name]]
        return None

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter(), time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def stopwatch(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, everything on the device included."""
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def second_stage(row: Row, spec: str | None, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images [N, 3, h, w] in [0, 1] at the size of the row's cascade: by the SPEC, else bilinear on the device."""
    if spec is None:
        return lambda images: F.interpolate(images, scale_factor=row.enlarged, mode="bilinear")
    upscaler = open_upscaler(spec, device, DTYPE if device.type == "cuda" else torch.float32)

    def enlarged(images: torch.Tensor) -> torch.Tensor:
        size = (images.shape[-2] * row.enlarged, images.shape[-1] * row.enlarged)
        return upscaler(unit_to_uint8(images), size)

    return enlarged


@torch.no_grad()
def text_seconds(row: Row, batch: int, guided: bool, device: torch.device) -> float:
    """The row's text encoders, one after the other, for a batch of prompts (and negative prompts)."""
    total = 0.0
    for name, length in row.family.encoders:
        encoder = random_encoder(name, device, DTYPE)
        ids = torch.randint(0, encoder.config.vocab_size, (batch, length), device=device)
        encoder(ids)
        passes = [stopwatch(lambda encoder=encoder, ids=ids: encoder(ids), device) for _ in range(3)]
        total += min(passes) * (2 if guided and row.family.guidance_doubles else 1)
        del encoder
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return total


def measure(row: Row, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """One row of the table."""
    batch, guided = arguments.batch, not arguments.no_guidance
    text = text_seconds(row, batch, guided, device) if arguments.text_encoders else None
    pipe = random_pipeline(row, device, DTYPE)
    if row.side > LARGE:
        pipe.vae.enable_slicing()
    if arguments.channels_last:
        pipe.vae.to(memory_format=torch.channels_last)
    if arguments.compile:
        pipe.transformer.forward = torch.compile(pipe.transformer.forward)
        pipe.vae.decoder.forward = torch.compile(pipe.vae.decoder.forward)
    call = call_arguments(row, batch, guided, device, DTYPE)

    enlarge = second_stage(row, arguments.upscale, device) if row.enlarged > 1 else None

    def draw(steps: int) -> Any:
        images = pipe(num_inference_steps=steps, **call).images
        return images if enlarge is None else enlarge(images)

    if arguments.warmup:
        draw(arguments.warmup)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(device)
    pipe.transformer.forward = clock.timed("step", pipe.transformer.forward)
    pipe.vae.decode = clock.timed("decode", pipe.vae.decode)
    enlarge = None if enlarge is None else clock.timed("second stage", enlarge)
    steps = arguments.steps or row.steps
    whole = stopwatch(lambda: draw(steps), device)
    step, decode = min(clock.seconds("step")), sum(clock.seconds("decode"))
    second = None if enlarge is None else sum(clock.seconds("second stage"))
    if steps != row.steps:
        whole = row.steps * step + decode + (second or 0.0)
    whole += text or 0.0
    processor = clock.processor_seconds("step")
    return {
        "title": row.title,
        "parameters": sum(weight.numel() for weight in pipe.transformer.parameters()),
        "tokens": tokens(row, pipe.transformer),
        "steps": row.steps,
        "guidance": row.guidance if guided else None,
        "step_seconds": step,
        "step_processor_seconds": None if processor is None else min(processor),
        "decode_seconds": decode,
        "second_stage": None if enlarge is None else arguments.upscale or "bilinear",
        "second_stage_seconds": second,
        "text_seconds": text,
        "image_seconds": whole / batch,
        "images_per_second": batch / whole,
        "image": "run" if steps == row.steps else "sum",
        "steps_run": steps,
        "memory_gb": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else peak_memory(),
        "paper_images_per_second": row.paper,
    }


def child(arguments: argparse.Namespace) -> None:
    """Measure one row and print it as a line of JSON."""
    device = _device()
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    row = ROWS[arguments.row]
    try:
        result = measure(row.tiny() if arguments.tiny else row, arguments, device)
    except torch.cuda.OutOfMemoryError:
        result = {
            "title": row.title,
            "failed": f"out of GPU memory at batch {arguments.batch}: use a smaller --batch",
        }
    print(json.dumps(result))


def in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """`child` for one row; a row that fails or takes too long says so and the others go on."""
    command = [sys.executable, __file__, "--row", name, "--batch", str(arguments.batch)]
    command += ["--warmup", str(arguments.warmup)]
    command += ["--steps", str(arguments.steps)] if arguments.steps else []
    command += ["--upscale", arguments.upscale] if arguments.upscale else []
    for switch in ("no_guidance", "text_encoders", "compile", "channels_last", "tiny"):
        command += [f"--{switch.replace('_', '-')}"] if getattr(arguments, switch) else []
    try:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, timeout=arguments.limit)
    except subprocess.TimeoutExpired:
        return {"title": ROWS[name].title, "failed": f"took longer than --limit {arguments.limit:g} s"}
    if done.returncode:
        return {"title": ROWS[name].title, "failed": f"exit status {done.returncode}, see above"}
    return json.loads(done.stdout.splitlines()[-1])


def with_ratios(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same rows; "ratio" is the native row's seconds an image by this row's, where both were measured."""
    for name, result in results.items():
        native = results.get(ROWS[name].native or "", {})
        for key in ("image_seconds", "step_seconds", "step_processor_seconds"):
            if native.get(key) and result.get(key):
                result[f"{key.removesuffix('_seconds')}_ratio"] = native[key] / result[key]
    return results


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for result in results.values():
        if "failed" in result:
            lines.append(f"| {result['title']} | {result['failed']} |" + " |" * (len(COLUMNS) - 2))
            continue
        text, ratio, paper = result["text_seconds"], result.get("image_ratio"), result["paper_images_per_second"]
        second = result["second_stage_seconds"]
        cells = [
            result["title"],
            f"{result['parameters'] / 1e9:.2f} B",
            f"{result['tokens']}x{result['tokens']}",
            f"{result['step_seconds']:.3f} s",
            f"{result['decode_seconds']:.3f} s",
            "" if second is None else f"{second:.3f} s",
            "" if text is None else f"{text:.3f} s",
            f"{result['image_seconds']:.2f} s ({result['steps']} steps, {result['image']})",
            f"{result['images_per_second']:.3g}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{result['memory_gb']:.1f} GiB",
            "" if paper is None else f"{paper:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def processor_time(results: dict[str, dict[str, Any]]) -> str:
    """A line a row that was measured on a CPU: what a busy machine does not change."""
    lines = []
    for result in results.values():
        if result.get("step_processor_seconds"):
            ratio = result.get("step_processor_ratio")
            compared = "" if ratio is None else f", ratio {ratio:.2f}"
            lines.append(f"{result['title']}: {result['step_processor_seconds']:.1f} s of processor a step{compared}")
    return "\n".join(lines)


def report(arguments: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Everything that is needed to read the numbers, and to measure them again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "hardware": hardware() | {"cuda": torch.version.cuda},
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers, accelerate)},
        "protocol": {
            "weights": "random, bf16",
            "prompts": "random embeddings of the pipeline's own length",
            "batch": arguments.batch,
            "warm-up steps": arguments.warmup,
            "compiled": arguments.compile,
            "autoencoder": "channels last" if arguments.channels_last else "channels first",
            "guidance": "off" if arguments.no_guidance else "on",
            "text encoders": "measured alone and added" if arguments.text_encoders else "left out",
            "decode": f"images above {LARGE} px one by one",
            "columns": __doc__,
        },
        "rows": results,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _chosen(names: str) -> list[str]:
    beginnings = tuple(names.split(","))
    chosen = [name for name in ROWS if name.startswith(beginnings)]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in chosen):
            raise SystemExit(f"No row begins with {beginning!r}; allowed: {', '.join(ROWS)}.")
    return chosen


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the defaults of this machine filled in."""
    gpu = _device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="beginnings of names, comma separated; all on a GPU, sd35m-1k on a CPU")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--batch", type=int, default=10 if gpu else 1, help="images a call; 10 on a GPU, else 1")
    parser.add_argument(
        "--steps", type=int, default=None if gpu else 1, help="steps to run; a GPU runs the row's own"
    )
    parser.add_argument("--warmup", type=int, help="steps before the clock starts; 2 on a GPU or with --compile")
    parser.add_argument("--no-guidance", action="store_true", help="one prediction a step")
    parser.add_argument("--text-encoders", action="store_true", help="time text encoders with random weights too")
    parser.add_argument("--upscale", metavar="SPEC", help="what enlarges 512 px images, as `davae upscale --with`")
    parser.add_argument("--compile", action="store_true", help="torch.compile the transformer and the decoder")
    parser.add_argument("--channels-last", action="store_true", help="the autoencoder's weights in this layout")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a row is given up")
    parser.add_argument("--tiny", action="store_true", help="one narrow block of everything: shows that rows run")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--row", choices=sorted(ROWS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.warmup is None:
        arguments.warmup = 2 if gpu or arguments.compile else 0
    arguments.names = _chosen(arguments.rows or ("" if gpu else "sd35m-1k"))
    return arguments


def main() -> int:
    """Every chosen row in turn; the file is rewritten after each, so that a stopped run keeps what it has."""
    arguments = parse()
    if arguments.list:
        print("\n".join(f"{name:<26} {ROWS[name].title}" for name in ROWS))
        return 0
    if arguments.row:
        child(arguments)
        return 0
    results: dict[str, dict[str, Any]] = {}
    for name in arguments.names:
        print(f"{ROWS[name].title} ...", file=sys.stderr, flush=True)
        results[name] = in_own_process(name, arguments)
        with_ratios(results)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report(arguments, results), indent=2) + "\n")
    print(json.dumps(hardware()))
    print(table(results))
    print(processor_time(results))
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
