"""What `davae doctor` proves: data, pair, keys, step-0 equality, latents, caches, one training step."""

import math
import time
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from davae.core.precision import autocast
from davae.data.cache_files import has_manifest
from davae.data.image_source import ImageSource
from davae.data.latent_cache import LatentCache
from davae.data.prompt_cache import PromptCache
from davae.models.adapter import adapt
from davae.run import build, geometry
from davae.run.checks import check_pair as check_fit_of_pair
from davae.run.rounds import Round, rounds_of
from davae.tools.doctor.examination import Examination
from davae.tools.doctor.finding import Finding
from davae.train.batch import Batch
from davae.train.ema import trained_parameters
from davae.train.latent_set import draws

TOLERANCE = 1e-5
"""Of the base prediction after widening, of its maximum, in fp32."""
_MEAN, _STD = 0.5, (0.5, 2.0)
"""Latents outside of these, over all channels, are not what a transformer was trained on."""
_CPU_BATCH = 2  # images of the training step where there is no accelerator


def check_pair(examination: Examination) -> list[Finding]:
    """The pair is there, and its parts belong together."""
    run = examination.run
    if run.recipe.pretrain is not None and not Path(run.pair_source).is_dir():
        advice = "After 'davae pretrain RECIPE' there is more to examine."
        return [Finding("left out", "Section pretrain has not made the pair yet.", advice)]
    try:
        base = build.base_autoencoder(run)
    except FileNotFoundError as error:
        advice = "For a model on the hub, accept its licence there and run 'hf auth login'."
        return [Finding("failed", str(error), advice)]
    channels, compression = adapt(base).layout.channels, adapt(base).compression
    if not run.recipe.has("finetune"):
        return [Finding("ok", f"{type(base).__name__}, {channels} channels, f{compression}.")]
    taken = run.pair.backbone.latent_channels(run.pair.transformer_config)
    if taken != channels:
        family = run.pair.backbone.class_name
        message = f"{type(base).__name__} has {channels} latent channels, {family} takes {taken}."
        return [Finding("failed", message, "Take an autoencoder and a transformer that were trained together.")]
    message = f"{run.pair.pipeline_name}: {type(base).__name__} f{compression}c{channels}"
    return [Finding("ok", f"{message}, {run.pair.backbone.class_name}.")]


def check_data(examination: Examination) -> list[Finding]:
    """Images, captions or classes, and what cannot be used."""
    run = examination.run
    parts: dict[str, ImageSource] = {"images": run.data.train, "test images": run.data.test}
    trained = {"images": run.data.finetune}
    if len(run.data.finetune) != len(run.data.train):
        trained = {"images of other shapes than squares too": run.data.finetune}
    if run.recipe.realism is not None:
        trained["images for realism"] = run.data.realism
    parts |= trained
    values = {name: len(source) for name, source in parts.items()}
    message = [f"{count:,} {name}" for name, count in values.items()]
    findings = []
    if run.recipe.has("prompts"):
        findings += [finding for name, source in trained.items() for finding in _captions(name, source)]
        message.append(f"{len(set(chain.from_iterable(run.data.finetune.all_captions))):,} different captions")
    elif run.data.train.class_names:
        message.append(f"{len(run.data.train.class_names):,} classes")
    skipped = {tuple(item) for source in parts.values() for item in source.skipped}
    if skipped:
        reasons = Counter(reason for _, reason in skipped).most_common(3)
        named = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
        unusable = f"{len(skipped):,} images cannot be used: {named}."
        findings.append(Finding("warning", unusable, "Replace them, or do without."))
    return [Finding("ok", f"{', '.join(message)}.", values=values), *findings]


def _captions(name: str, source: ImageSource) -> list[Finding]:
    empty = sum(not caption for caption in source.captions)
    if not empty:
        return []
    if empty == len(source):
        return [
            Finding("failed", f"None of the {len(source):,} {name} has a caption.", "Caption them: text to image.")
        ]
    message = f"{empty:,} of {len(source):,} {name} have no caption and train as the empty prompt."
    return [Finding("warning", message, "Caption them.")]


def check_fit(examination: Examination) -> list[Finding]:
    """Image size, classes and prompts of the recipe are something that the pair can learn."""
    check_fit_of_pair(examination.run, len(examination.run.data.train.class_names))
    size, position = examination.run.recipe.image_size, geometry.upgraded(examination.run).compression
    return [Finding("ok", f"{size} px fit; {position} px a latent position after the upgrade.")]


def check_keys(examination: Examination) -> list[Finding]:
    """Every weight of the transformer is copied or widened."""
    _, report = examination.widened
    return [Finding("ok", f"{report}.", values={"copied": len(report.copied), "widened": report.widened})]


@torch.no_grad()
def check_step_zero(examination: Examination) -> list[Finding]:
    """Before training, the prediction on the base channels is the pretrained one, whatever the detail holds."""
    run, layout, device = examination.run, examination.layout, examination.device
    velocity = run.pair.backbone.velocity
    if velocity is None:
        message = f"A {run.pair.backbone.class_name} has no velocity."
        return [Finding("failed", message, "Take another pair.")]
    widened, _ = examination.widened
    side = run.recipe.image_size // examination.autoencoder.compression
    source = torch.Generator().manual_seed(run.recipe.seed)
    base = torch.randn(1, layout.base_channels, side, side, generator=source).to(device)
    detail = torch.randn(1, layout.detail_channels, side, side, generator=source).to(device)
    native, conditions = torch.full((1,), 0.4, device=device), examination.random_conditions(1)
    want = velocity(examination.pretrained, base, native, conditions)
    base_predictions, detail_predictions = zip(
        *(
            layout.split(velocity(widened, layout.join(base, factor * detail), native, conditions))
            for factor in (0.0, 1.0, 10.0)
        ),
        strict=True,
    )
    del examination.pretrained  # a large one is not needed any more
    largest, worst = want.abs().max().item(), (torch.stack(base_predictions) - want).abs().max().item()
    values = {"largest": largest, "difference": worst, "detail": torch.stack(detail_predictions).abs().max().item()}
    message = f"max |difference| {worst:.1e} of the base prediction (max {largest:.3g}) for three detail inputs"
    if not math.isfinite(largest + worst):
        return [
            Finding("failed", "The pair's transformer does not predict finite numbers.", "Save it again.", values)
        ]
    if largest == 0:
        message = "The pretrained transformer predicts 0 everywhere, as one that was never trained."
        return [Finding("warning", message, "Take a trained one.", values)]
    if worst <= TOLERANCE * largest:
        return [Finding("ok", f"{message}; detail prediction at most {values['detail']:.1e}.", values=values)]
    init = Round(run).config.init
    if init != "zero":
        advice = f"That is what init: {init} does; zero keeps the pretrained prediction."
        return [Finding("warning", f"{message}.", advice, values)]
    message += f"; allowed {TOLERANCE:.0e} of the maximum."
    return [Finding("failed", message, "Please report this pair.", values)]


def check_latents(examination: Examination) -> list[Finding]:
    """Base and detail latents of a few images have about mean 0 and deviation 1 as the transformer sees them."""
    encoded = examination.encoded
    findings = [_statistics("base", encoded.base.mean().item(), encoded.base.std().item(), len(encoded.base))]
    if not examination.has_tokenizer:
        return [*findings, Finding("ok", "No autoencoder is trained yet; its detail is calibrated after training.")]
    if encoded.detail is None:
        message = "The trained autoencoder is not calibrated: its detail has no units."
        return [*findings, Finding("warning", message, "Run 'davae train-tokenizer RECIPE' to its end.")]
    mean, spread = encoded.detail
    deviation = (mean.var() + spread.square().mean()).sqrt().item()
    return [*findings, _statistics("detail", mean.mean().item(), deviation, len(mean))]


def _statistics(what: str, mean: float, std: float, images: int) -> Finding:
    message = f"{what} latents of {images} images: mean {mean:.2f}, deviation {std:.2f} in the transformer's units."
    values = {f"{what}_mean": mean, f"{what}_std": std}
    if abs(mean) <= _MEAN and _STD[0] <= std <= _STD[1]:
        return Finding("ok", message, values=values)
    advice = "About 0 and 1 are expected. Check the scaling of the autoencoder's config, and that the pair is one."
    return Finding("warning", message, advice, values)


def check_latent_cache(examination: Examination) -> list[Finding]:
    """Latents that are cached were made for this recipe."""
    return [_latent_cache(current) for current in rounds_of(examination.run)]


def check_prompt_cache(examination: Examination) -> list[Finding]:
    """Prompts that are cached were made for this recipe."""
    return [_prompt_cache(current) for current in rounds_of(examination.run)]


def _latent_cache(current: Round) -> Finding:
    run = current.run
    if not _is_made(current, "cache"):
        return Finding("ok", f"No latents are cached yet for {current.name}.")
    cache, config = build.latent_cache(current, build.trained_tokenizer(run)), run.recipe.cache
    if config is not None:
        cache.require(flips=config.flips, dtype=config.dtype, precision=config.precision)
    return Finding("ok", f"Latents of {len(cache):,} images for {current.name} fit autoencoder, images and recipe.")


def _prompt_cache(current: Round) -> Finding:
    if not _is_made(current, "prompts"):
        return Finding("ok", f"No prompts are cached yet for {current.name}.")
    cache, ids = PromptCache(current.prompts), current.source.ids
    cache.require(**build.prompt_key(current.run))
    cache.embeddings([ids[0], ids[-1]])
    return Finding("ok", f"{cache.num_prompts:,} prompts for {current.name} fit text encoders, images and recipe.")


def _is_made(current: Round, section: Literal["cache", "prompts"]) -> bool:
    """Whether a cache is there, or promised by another run."""
    run = current.run
    promised = not current.is_second and section in run.recipe.reuse
    folder = run.folder.latents(current.name) if section == "cache" else run.folder.prompts(current.name)
    return promised or has_manifest(folder)


def check_training_step(examination: Examination) -> list[Finding]:
    """One forward and backward pass of the recipe's own task is finite."""
    current = Round(examination.run)
    config = current.config
    transformer = build.trainable(examination.widened[0], current)
    task = build.diffusion_task(transformer.to(examination.device), examination.layout, config)
    is_cuda = examination.device.type == "cuda"
    micro = config.batch_size // config.accumulation
    batch, origin = _batch(examination, micro if is_cuda else min(micro, _CPU_BATCH))
    started = time.monotonic()
    with autocast(examination.device, config.precision):
        loss = task.loss("transformer", transformer, batch, config.detail_warmup_steps)
    loss.total.backward()
    gradients = [weight.grad for _, weight in trained_parameters(transformer) if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    values = {"loss": loss.total.item(), "gradient_norm": norm}
    values |= {name: value.item() for name, value in loss.values.items()}
    message = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
    message += (
        f"; {time.monotonic() - started:.1f} s for {len(batch['latent'])} {origin} on {examination.device.type}."
    )
    transformer.zero_grad(set_to_none=True)
    if not torch.isfinite(torch.tensor(list(values.values()))).all():
        advice = "Use precision: fp32, and look at the latents' statistics."
        return [Finding("failed", f"Not finite: {message}", advice)]
    return [Finding("ok", message, values=values)]


def _batch(examination: Examination, size: int) -> tuple[Batch, str]:
    """The first images of the training where all of them is cached, else a few with random conditions."""
    run, positions = examination.run, list(range(size))
    current = Round(run)
    if _is_made(current, "cache") and (not run.pair.is_text or _is_made(current, "prompts")):
        training = build.latent_set(current, LatentCache(current.latents))
        return _on_device(examination, training.__getitems__(positions)), "cached images"
    encoded = examination.encoded.base
    base = encoded[[position % len(encoded) for position in positions]].float()
    source = torch.Generator().manual_seed(run.recipe.seed)
    detail = torch.randn(size, examination.layout.detail_channels, *base.shape[2:], generator=source)
    latent = examination.layout.join(base, detail.to(examination.device))
    batch = {"latent": latent, "position": torch.tensor(positions), **examination.random_conditions(size)}
    noise = draws(run.recipe.seed, positions, latent.shape[1:])
    return _on_device(examination, {**batch, **noise}), "images with random detail and conditions"


def _on_device(examination: Examination, batch: Batch) -> Batch:
    return {name: tensor.to(examination.device) for name, tensor in batch.items()}
