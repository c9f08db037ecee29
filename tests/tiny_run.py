"""A tiny recipe, and `davae` called in this process."""

import io
import re
from contextlib import redirect_stderr
from pathlib import Path

from davae.cli import main

STAGES = ["tokenizer", "cache", "finetune", "sample", "evaluate", "report"]
VERBS = ["train-tokenizer", "cache", "finetune", "sample", "evaluate", "report"]
RECIPE = """
name: tiny
seed: 1
data: {{kind: solids, count: 40, test_count: 20, seed: 7, workers: 0}}
pair: {pair}
image_size: 32
tokenizer:
  {{steps: 3, batch_size: 4, calibration_images: 16, log_every: 1, checkpoint_every: 2, ema_decay: 0.5}}
cache: {{batch_size: 8, shard_size: 16}}
finetune:
  {{steps: 3, batch_size: 8, detail_warmup_steps: 2, log_every: 1, checkpoint_every: 2, ema_decay: 0.5}}
sample: {{count: 20, steps: 3, batch_size: 8, guidance_scale: 1.5}}
evaluate: {{reconstructions: 12, speed_batch: 2, batch_size: 8, claims: true}}
"""


def run(recipe: Path, runs: Path, *arguments: str, verb: str = "run") -> tuple[int, str]:
    """Exit status and what was said."""
    with redirect_stderr(io.StringIO()) as said:
        status = main([verb, str(recipe), "--runs-dir", str(runs), *arguments])
    return status, said.getvalue()


def skipped(said: str) -> list[str]:
    return re.findall(r"^(\S+): done before, skipped\s*$", said, re.MULTILINE)


def weights(run_folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run_folder)): path.read_bytes()
        for part in ("tokenizer", "latents", "pipeline")
        for path in sorted((run_folder / part).rglob("*.safetensors"))
    }
