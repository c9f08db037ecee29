"""A small text-to-image pair on `solids`, and a judge of how well generated images follow their captions.

SD3's own classes, with CLIP and T5 encoders of random weights over a vocabulary of 18 words; no hub, no data set.

    davae pretrain solids-text-autoencoder
    PYTHONPATH=tests python benchmarks/text_to_image.py pair runs/solids-text-autoencoder/pretrain/vae PAIR
    davae run solids-text --set pair=PAIR
    PYTHONPATH=tests python benchmarks/text_to_image.py judge runs/solids-text

`pair` trains the base for 64 px (64 tokens) and can be stopped and run again; torchrun with two processes works.
`judge` trains a small classifier of shape, material and colour on renderings, then looks at the run's samples.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor, nn

from davae.caching.latent_encoding import encode_images
from davae.caching.prompt_encoding import encode_prompts
from davae.caching.settings import CacheConfig, PromptsConfig
from davae.cli.terminal import watch
from davae.core.observer import Observer, Silent
from davae.core.pixels import uint8_to_signed
from davae.core.randomness import permutation
from davae.core.state import write_json
from davae.data.cache_files import Part
from davae.data.image_source import ImageSource
from davae.data.latent_cache import LatentCache
from davae.data.prompt_cache import PromptCache
from davae.data.solids import HUES, MATERIALS, SHAPES, SolidsSource
from davae.models.adapter import adapt
from davae.models.loading import load_autoencoder
from davae.train.checkpoint import CheckpointStore
from davae.train.conditions import Prompts
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.ema import ExponentialAverage
from davae.train.feed import Share, feed
from davae.train.journal import Journal
from davae.train.latent_set import LatentSet
from davae.train.loop import train
from davae.train.settings import OptimConfig
from tiny_text import MAX_LENGTH, clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer

BASE_SIZE = 64
WIDTH = 64
"""Of a CLIP encoder; T5 is as wide as both together."""
AXES = {"shape": SHAPES, "material": MATERIALS, "colour": HUES}


def pipeline(autoencoder: Any) -> StableDiffusion3Pipeline:
    """An untrained transformer of 9 million parameters between real parts."""
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=autoencoder.config.latent_channels,
        out_channels=autoencoder.config.latent_channels,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=192,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder,
        text_encoder=clip_encoder(clip, WIDTH, WIDTH),
        tokenizer=clip,
        text_encoder_2=clip_encoder(clip, WIDTH, WIDTH),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(t5, 2 * WIDTH),
        tokenizer_3=t5,
    )


def with_unit_latents(autoencoder: AutoencoderKL) -> AutoencoderKL:
    """The same autoencoder, its statistics folded into 1x1 convolutions: SD3's pipeline has one factor alone."""
    config = {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}
    mean, std = (torch.tensor(config[key]) for key in ("latents_mean", "latents_std"))
    folded = AutoencoderKL(
        **config
        | {"use_quant_conv": True, "use_post_quant_conv": True, "latents_mean": None, "latents_std": None}
        | {"scaling_factor": 1.0, "shift_factor": 0.0}
    )
    folded.load_state_dict(autoencoder.state_dict(), strict=False)
    weights = (torch.cat([1 / std, torch.ones_like(std)]), std)
    biases = (torch.cat([-mean / std, -2 * std.log()]), mean)
    with torch.no_grad():
        for layer, weight, bias in zip((folded.quant_conv, folded.post_quant_conv), weights, biases, strict=True):
            layer.weight.copy_(torch.diag(weight)[:, :, None, None])
            layer.bias.copy_(bias)
    return folded.eval()


def make_pair(arguments: argparse.Namespace) -> None:
    """Train the base pair and save it as a pipeline."""
    # Without a GPU, processes find each other only if they are told so.
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    pipe = pipeline(with_unit_latents(load_autoencoder(arguments.autoencoder)))
    with watch() as bars:
        observer = bars if accelerator.is_main_process else Silent()
        encode(pipe, SolidsSource(arguments.images, 0), arguments.out, accelerator, observer)
        average = fit(pipe, arguments.out, arguments.steps, accelerator, observer)
    with average.applied():
        if accelerator.is_main_process:
            pipe.transformer.eval()
            pipe.save_pretrained(arguments.out)


def encode(pipe: Any, source: ImageSource, out: Path, accelerator: Accelerator, observer: Observer) -> None:
    """Images and captions into caches, shared by all processes."""
    part = Part(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    encode_images(
        pipe.vae,
        source,
        BASE_SIZE,
        out / "latents",
        CacheConfig(flips=False, precision="bf16", batch_size=64),
        accelerator.device,
        observer,
        part=part,
    )
    encode_prompts(
        pipe,
        dict(zip(source.ids, source.all_captions, strict=True)),
        out / "prompts",
        PromptsConfig(max_length=MAX_LENGTH, dtype="float32", batch_size=64, shard_size=4096),
        accelerator.device,
        observer,
        encoders="random",
        part=part,
    )


def fit(pipe: Any, out: Path, steps: int, accelerator: Accelerator, observer: Observer) -> ExponentialAverage:
    """Train the transformer on the caches; its averaged weights."""
    config = DiffusionConfig(
        steps=steps,
        batch_size=64,
        flips=False,
        cosine_weight=0.5,
        ema_decay=0.999,
        ema_ramp=True,
        log_every=100,
        checkpoint_every=500,
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.95), warmup_steps=200, final_lr_factor=0.05, max_grad_norm=1.0),
    )
    cache, prompts = LatentCache(out / "latents"), PromptCache(out / "prompts")
    task = DiffusionTask(pipe.transformer.train(), adapt(pipe.vae).layout, config)
    conditions = Prompts(prompts, cache.manifest.ids, config.condition_dropout, seed=0)
    training_set = LatentSet(cache, conditions, 0, config.flips, config.batch_size)
    share = Share(config.batch_size, 1, accelerator.num_processes, accelerator.process_index)
    averages = train(
        task,
        lambda start: feed(training_set, share, start, config.steps, workers=1),
        config,
        accelerator,
        store=CheckpointStore(out / "checkpoints", {"steps": config.steps}),
        journal=Journal(out / "stats.jsonl", "base"),
        observer=observer,
    )
    average = averages["transformer"]
    assert average is not None
    return average


class Judge(nn.Module):
    """Shape, material and colour of a solid at 128 px."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96, 96)
        layers = []
        for taken, given in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(taken, given, 3, 2, 1), nn.GroupNorm(8, given), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], len(values)) for name, values in AXES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of uint8 images [B, 3, 128, 128]."""
        features = self.trunk(uint8_to_signed(images)).mean(dim=(2, 3))
        return {name: head(features) for name, head in self.heads.items()}


def asked_for(captions: list[str]) -> dict[str, Tensor]:
    """Indices of what the captions ask for: "a striped red box"."""
    words = [caption.split() for caption in captions]
    places = {"material": 1, "colour": 2, "shape": 3}
    return {name: torch.tensor([values.index(row[places[name]]) for row in words]) for name, values in AXES.items()}


def trained_judge(size: int, steps: int) -> Judge:
    """A judge that has seen renderings alone."""
    torch.manual_seed(0)
    judge, source = Judge(), SolidsSource(64 * steps, seed=77)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        indices = range(64 * step, 64 * step + 64)
        logits, target = (
            judge(source.images(indices, size)),
            asked_for([source.captions[index] for index in indices]),
        )
        loss = torch.stack([F.cross_entropy(logits[name], target[name]) for name in AXES]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Share of images that are what their captions say."""
    parts = [judge(batch) for batch in images.split(64)]
    target = asked_for(captions)
    return {
        name: (torch.cat([part[name] for part in parts]).argmax(1) == target[name]).float().mean().item()
        for name in AXES
    }


def renderings(source: ImageSource, count: int, size: int) -> Tensor:
    """Real images [count, 3, size, size]."""
    return source.images(range(count), size)


def judge_run(arguments: argparse.Namespace) -> None:
    """Print and write how generated images, real ones and shuffled captions compare."""
    folder = arguments.run / "samples"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    captions = [row["text"] for row in rows]
    images = torch.stack([pixels(folder / row["file_name"]) for row in rows])
    size = images.shape[-1]
    judge = trained_judge(size, arguments.steps)
    held_out = SolidsSource(len(images), seed=78)
    shuffled = [captions[index] for index in permutation(0, "captions of others", 0, len(captions)).tolist()]
    table = {
        "real images": accuracy(judge, renderings(held_out, len(images), size), held_out.captions),
        "drawn": accuracy(judge, images, captions),
        "drawn, captions of others": accuracy(judge, images, shuffled),
        "chance": {name: 1 / len(values) for name, values in AXES.items()},
    }
    print(json.dumps(table, indent=1))
    write_json(arguments.run / "captions.json", {"images": len(images), "accuracy": table}, indent=1)


def pixels(path: Path) -> Tensor:
    """uint8 [3, H, W]."""
    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width, 3).permute(2, 0, 1)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; `command` is what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    pair = commands.add_parser("pair", help="train the base pair")
    pair.add_argument("autoencoder", type=Path)
    pair.add_argument("out", type=Path)
    pair.add_argument("--steps", type=int, default=1800)
    pair.add_argument("--images", type=int, default=24_576, help="rendered scenes to train on")
    pair.set_defaults(command=make_pair)
    judge = commands.add_parser("judge", help="whether images follow their captions")
    judge.add_argument("run", type=Path)
    judge.add_argument("--steps", type=int, default=400)
    judge.set_defaults(command=judge_run)
    return parser.parse_args(words)


if __name__ == "__main__":
    arguments = parse()
    arguments.command(arguments)
