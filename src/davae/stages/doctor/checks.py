"""What `davae doctor` proves: data, pair, keys, step-0 equality, latents, caches, one training step."""

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch

from davae.backbones.lora import prepare_lora
from davae.data.latents import LatentCache
from davae.data.prompts import PromptCache
from davae.data.source import ImageSource
from davae.models.faces import layout_of, weights_hash
from davae.stages import prompts
from davae.stages.doctor.case import Case, Finding
from davae.stages.phase import Phase
from davae.train.conditions import Conditions, Labels, Prompts
from davae.train.diffusion import DiffusionTask
from davae.train.ema import trained_parameters
from davae.train.feed import Batch
from davae.train.latent_set import LatentSet, draws

TOLERANCE = 1e-5
"""Of the base prediction after widening, of its maximum, in fp32."""
_MEAN, _STD = 0.5, (0.5, 2.0)
"""Latents outside of these, over all channels, are not what a transformer was trained on."""
_CPU_BATCH = 2  # images of the training step where there is no accelerator


def check_pair(case: Case) -> list[Finding]:
    """The pair is there, and its parts belong together."""
    run = case.run
    if run.recipe.pretrain is not None and not Path(run.pair_source).is_dir():
        advice = "After 'davae pretrain RECIPE' there is more to examine."
        return [Finding("left out", "Section pretrain has not made the pair yet.", advice)]
    try:
        base = run.base_autoencoder()
    except FileNotFoundError as error:
        advice = "For a model on the hub, accept its licence there and run 'hf auth login'."
        return [Finding("failed", str(error), advice)]
    channels = layout_of(base).channels
    if not run.recipe.has("finetune"):
        return [Finding("ok", f"{type(base).__name__}, {channels} channels, f{run.base_compression}.")]
    taken = run.pair.backbone.latent_channels(run.pair.transformer_config)
    if taken != channels:
        said = f"{type(base).__name__} has {channels} latent channels, {run.pair.backbone.class_name} takes {taken}."
        return [Finding("failed", said, "Take an autoencoder and a transformer that were trained together.")]
    said = f"{run.pair.pipeline_class.__name__}: {type(base).__name__} f{run.base_compression}c{channels}"
    return [Finding("ok", f"{said}, {run.pair.backbone.class_name}.")]


def check_data(case: Case) -> list[Finding]:
    """Images, captions or classes, and what cannot be used."""
    run = case.run
    parts: dict[str, ImageSource] = {"images": run.sources[0], "test images": run.sources[1]}
    trained = {"images": run.finetune_source}
    if len(run.finetune_source) != len(run.sources[0]):
        trained = {"images of other shapes than squares too": run.finetune_source}
    if run.recipe.realism is not None:
        trained["images for realism"] = run.realism_source
    parts |= trained
    values = {name: len(source) for name, source in parts.items()}
    said = [f"{count:,} {name}" for name, count in values.items()]
    findings = []
    if run.recipe.has("prompts"):
        findings += [finding for name, source in trained.items() for finding in _captions(name, source)]
        said.append(f"{len(set(run.finetune_source.captions)):,} different captions")
    elif run.sources[0].class_names:
        said.append(f"{len(run.sources[0].class_names):,} classes")
    skipped = {tuple(item) for source in parts.values() for item in source.skipped}
    if skipped:
        reasons = Counter(reason for _, reason in skipped).most_common(3)
        named = "; ".join(f"{count:,} x {reason}" for reason, count in reasons)
        unusable = f"{len(skipped):,} images cannot be used: {named}."
        findings.append(Finding("warning", unusable, "Replace them, or do without."))
    return [Finding("ok", f"{', '.join(said)}.", values=values), *findings]


def _captions(name: str, source: ImageSource) -> list[Finding]:
    empty = sum(not caption.strip() for caption in source.captions)
    if not empty:
        return []
    if empty == len(source):
        return [
            Finding("failed", f"None of the {len(source):,} {name} has a caption.", "Caption them: text to image.")
        ]
    said = f"{empty:,} of {len(source):,} {name} have no caption and train as the empty prompt."
    return [Finding("warning", said, "Caption them.")]


def check_fit(case: Case) -> list[Finding]:
    """Image size, classes and prompts of the recipe are something that the pair can learn."""
    scale, classes = case.autoencoder.config.scale, len(case.run.sources[0].class_names)
    case.run.check_pair(scale, classes)
    position = case.autoencoder.compression
    return [Finding("ok", f"{case.run.recipe.image_size} px fit; {position} px a latent position after the upgrade.")]


def check_keys(case: Case) -> list[Finding]:
    """Every weight of the transformer is copied, widened or new."""
    _, report = case.widened
    values = {"copied": len(report.copied), "widened": report.widened, "new": report.new}
    if report.new:
        return [Finding("warning", f"{report}.", "New weights change what the model was.", values)]
    return [Finding("ok", f"{report}.", values=values)]


@torch.no_grad()
def check_step_zero(case: Case) -> list[Finding]:
    """Before training, the prediction on the base channels is the pretrained one, whatever the detail holds."""
    velocity, layout = case.run.pair.backbone.velocity, case.layout
    if velocity is None:
        return [Finding("failed", f"A {case.run.pair.backbone.class_name} has no velocity.", "Take another pair.")]
    widened, _ = case.widened
    side = case.run.recipe.image_size // case.autoencoder.compression
    source = torch.Generator().manual_seed(case.run.recipe.seed)
    base = torch.randn(1, layout.base_channels, side, side, generator=source).to(case.device)
    detail = torch.randn(1, layout.detail_channels, side, side, generator=source).to(case.device)
    native, conditioning = torch.full((1,), 0.4, device=case.device), case.random_conditioning(1)
    want = velocity(case.pretrained, base, native, conditioning)
    own, made = zip(
        *(
            layout.split(velocity(widened, layout.join(base, factor * detail), native, conditioning))
            for factor in (0.0, 1.0, 10.0)
        ),
        strict=True,
    )
    del case.pretrained  # a large one is not needed any more
    largest, worst = want.abs().max().item(), (torch.stack(own) - want).abs().max().item()
    values = {"largest": largest, "difference": worst, "detail": torch.stack(made).abs().max().item()}
    said = f"max |difference| {worst:.1e} of the base prediction (max {largest:.3g}) for three detail inputs"
    if not math.isfinite(largest + worst):
        return [
            Finding("failed", "The pair's transformer does not predict finite numbers.", "Save it again.", values)
        ]
    if largest == 0:
        said = "The pretrained transformer predicts 0 everywhere, as one that was never trained."
        return [Finding("warning", said, "Take a trained one.", values)]
    if worst <= TOLERANCE * largest:
        return [Finding("ok", f"{said}; detail prediction at most {values['detail']:.1e}.", values=values)]
    assert case.run.recipe.finetune is not None
    if case.run.recipe.finetune.init != "zero":
        advice = f"That is what init: {case.run.recipe.finetune.init} does; zero keeps the pretrained prediction."
        return [Finding("warning", f"{said}.", advice, values)]
    return [Finding("failed", f"{said}; allowed {TOLERANCE:.0e} of the maximum.", "Please report this pair.", values)]


def check_latents(case: Case) -> list[Finding]:
    """Base and detail latents of a few images have about mean 0 and deviation 1 as the transformer sees them."""
    encoded = case.encoded
    findings = [_statistics("base", encoded.base.mean().item(), encoded.base.std().item(), len(encoded.base))]
    if not case.has_tokenizer:
        return [*findings, Finding("ok", "No autoencoder is trained yet; its detail is calibrated after training.")]
    if encoded.detail is None:
        said = "The trained autoencoder is not calibrated: its detail has no units."
        return [*findings, Finding("warning", said, "Run 'davae train-tokenizer RECIPE' to its end.")]
    mean, spread = encoded.detail
    deviation = (mean.var() + spread.square().mean()).sqrt().item()
    return [*findings, _statistics("detail", mean.mean().item(), deviation, len(mean))]


def _statistics(what: str, mean: float, std: float, images: int) -> Finding:
    said = f"{what} latents of {images} images: mean {mean:.2f}, deviation {std:.2f} in the transformer's units."
    values = {f"{what}_mean": mean, f"{what}_std": std}
    if abs(mean) <= _MEAN and _STD[0] <= std <= _STD[1]:
        return Finding("ok", said, values=values)
    advice = "About 0 and 1 are expected. Check the scaling of the autoencoder's config, and that the pair is one."
    return Finding("warning", said, advice, values)


def check_latent_cache(case: Case) -> list[Finding]:
    """Latents that are cached were made for this recipe."""
    return [_latent_cache(phase) for phase in _phases(case)]


def check_prompt_cache(case: Case) -> list[Finding]:
    """Prompts that are cached were made for this recipe."""
    return [_prompt_cache(phase) for phase in _phases(case)]


def _phases(case: Case) -> list[Phase]:
    second = [] if case.run.recipe.realism is None else [Phase(case.run, "realism")]
    return [Phase(case.run, "finetune"), *second]


def _latent_cache(phase: Phase) -> Finding:
    run = phase.run
    if not _is_made(phase, "cache"):
        return Finding("ok", f"No latents are cached yet for {phase.name}.")
    cache, config = LatentCache(phase.latents), run.recipe.cache
    expected: dict[str, Any] = {
        "autoencoder": weights_hash(run.tokenizer()),
        "size": run.recipe.image_size,
        "source": phase.source.fingerprint,
    }
    if config is not None:
        expected |= {"flips": config.flips, "dtype": config.dtype, "precision": config.precision}
        expected["buckets"] = run.buckets
    cache.require(**expected)
    return Finding("ok", f"Latents of {len(cache):,} images for {phase.name} fit autoencoder, images and recipe.")


def _prompt_cache(phase: Phase) -> Finding:
    if not _is_made(phase, "prompts"):
        return Finding("ok", f"No prompts are cached yet for {phase.name}.")
    cache, ids = PromptCache(phase.prompts), phase.source.ids
    cache.require(**prompts.expected(phase.run))
    cache.embeddings([ids[0], ids[-1]])
    return Finding("ok", f"{cache.num_prompts:,} prompts for {phase.name} fit text encoders, images and recipe.")


def _is_made(phase: Phase, section: Literal["cache", "prompts"]) -> bool:
    """Whether a cache is there, or promised by another run."""
    name = {"cache": "latents", "prompts": "prompts"}[section]
    promised = not phase.is_second and section in phase.run.recipe.reuse
    return promised or (phase.folder / name / "manifest.json").exists()


def check_training_step(case: Case) -> list[Finding]:
    """One forward and backward pass of the recipe's own task is finite."""
    phase = Phase(case.run, "finetune")
    config = phase.config
    transformer, _ = case.widened
    if config.lora is not None:
        prepare_lora(transformer, config.lora, case.run.recipe.seed)
    task = DiffusionTask(transformer.to(case.device).train(), case.layout, config)
    is_cuda = case.device.type == "cuda"
    micro = config.batch_size // config.accumulation
    batch, origin = _batch(case, micro if is_cuda else min(micro, _CPU_BATCH))
    started = time.monotonic()
    with torch.autocast(case.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss, extras = task.loss("transformer", transformer, batch, config.detail_warmup_steps)
    loss.backward()
    gradients = [weight.grad for _, weight in trained_parameters(transformer) if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    values = {"loss": loss.item(), "gradient_norm": norm, **{name: value.item() for name, value in extras.items()}}
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())
    said = f"{said}; {time.monotonic() - started:.1f} s for {len(batch['latent'])} {origin} on {case.device.type}."
    transformer.zero_grad(set_to_none=True)
    if not torch.isfinite(torch.tensor(list(values.values()))).all():
        advice = "Use precision: fp32, and look at the latents' statistics."
        return [Finding("failed", f"Not finite: {said}", advice)]
    return [Finding("ok", said, values=values)]


def _batch(case: Case, size: int) -> tuple[Batch, str]:
    """The first images of the training where all of them is cached, else a few with random conditions."""
    run, positions = case.run, list(range(size))
    phase = Phase(run, "finetune")
    if _is_made(phase, "cache") and (not run.pair.is_text or _is_made(phase, "prompts")):
        cache, config = LatentCache(phase.latents), phase.config
        training = LatentSet(cache, _conditions(phase, cache), run.recipe.seed, config.flips, config.batch_size)
        return _on_device(case, training.__getitems__(positions)), "cached images"
    base = case.encoded.base[[position % len(case.encoded.base) for position in positions]].float()
    source = torch.Generator().manual_seed(run.recipe.seed)
    detail = torch.randn(size, case.layout.detail_channels, *base.shape[2:], generator=source)
    latent = case.layout.join(base, detail.to(case.device))
    batch = {"latent": latent, "position": torch.tensor(positions), **case.random_conditioning(size)}
    drawn = draws(run.recipe.seed, positions, latent.shape[1:])
    return _on_device(case, {**batch, **drawn}), "images with random detail and conditions"


def _conditions(phase: Phase, cache: LatentCache) -> Conditions:
    dropout, seed, pair = phase.config.condition_dropout, phase.run.recipe.seed, phase.run.pair
    if pair.is_text:
        return Prompts(PromptCache(phase.prompts), cache.manifest.ids, dropout, seed)
    return Labels(cache.manifest.labels, pair.transformer_config["num_classes"], dropout, seed)


def _on_device(case: Case, batch: Batch) -> Batch:
    return {name: tensor.to(case.device) for name, tensor in batch.items()}
