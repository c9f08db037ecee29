"""`davae evaluate`: reconstruction, generation and speed of a run, side by side with the pretrained pair."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from davae.backbones.registry import backbone_of
from davae.core.layout import LatentLayout
from davae.data.source import ImageSource
from davae.data.splits import first
from davae.evaluate.claims import generation_claims, reconstruction_claims, speed_claim
from davae.evaluate.generation import CONTROL, SETS, UPGRADED, UPSAMPLED, measure_generation
from davae.evaluate.reconstruction import measure_reconstruction
from davae.evaluate.results import Figure, Results, hardware
from davae.evaluate.speed import measure_speed
from davae.models.autoencoder import AutoencoderDA
from davae.models.faces import compression_of
from davae.recipe import EvaluateConfig, SampleConfig
from davae.report.figures import image_grid, labelled_strip, latent_figure
from davae.stages.drawing import draw_all, drawer_of, drawn_inputs, load_drawn
from davae.stages.run import Run, folder_hash, settings
from davae.stages.sample import drawn_latents

JUDGED_IMAGES = 2048
"""Drawn images that are compared at most: the sets and their patches are in memory."""


def inputs(run: Run) -> dict[str, Any]:
    """What the results depend on."""
    result: dict[str, Any] = {
        "evaluate": settings(run.recipe.evaluate),
        "data": run.sources[1].fingerprint,
        "image_size": run.recipe.image_size,
    }
    if run.recipe.has("tokenizer"):
        result["tokenizer"] = folder_hash(run.path_of("tokenizer"))
    if run.recipe.sample is not None:
        result["sample"] = settings(run.recipe.sample)
        result |= drawn_inputs(run)
    return result


def work(run: Run) -> None:
    """Measure on the main process and write results.json and the figures."""
    config = run.recipe.evaluate
    assert config is not None
    if not run.accelerator.is_main_process:
        return
    results = Results(run={"name": run.recipe.name, "hardware": hardware()})
    (run.folder / "figures").mkdir(parents=True, exist_ok=True)
    _reconstruction(run, config, results)
    if run.recipe.sample is not None:
        _generation(run, config, run.recipe.sample, results)
    results.save(run.folder / "results.json")


def _reconstruction(run: Run, config: EvaluateConfig, results: Results) -> None:
    run.observer.say("measuring reconstruction")
    autoencoder = run.tokenizer()
    source = first(run.sources[1], config.reconstructions)
    report = measure_reconstruction(autoencoder, source, run.recipe.image_size, config.batch_size)
    results.measurements += report.measurements
    labelled_strip(list(report.strips.items())).save(run.folder / "figures" / "reconstruction.png")
    results.figures.append(
        Figure(
            "Reconstruction",
            "Held-out images: the input, the pretrained autoencoder at the same tokens enlarged, the upgraded "
            "autoencoder, and what its decoder makes of no detail and of random detail.",
            "figures/reconstruction.png",
        )
    )
    if autoencoder.layout.detail_channels >= autoencoder.layout.base_channels:  # else there are no groups to show
        _latent(run, autoencoder, source, results)
    if config.claims:
        results.claims += reconstruction_claims({m.row: m.value for m in report.measurements if m.column == "PSNR"})


def _latent(run: Run, autoencoder: AutoencoderDA, source: ImageSource, results: Results) -> None:
    images = source.images([0], run.recipe.image_size).float().to(autoencoder.device) / 127.5 - 1
    with torch.no_grad():
        base, mean, _ = autoencoder.moments(images)
    latent = autoencoder.raw_scaling.normalise(autoencoder.layout.join(base, mean))[0].cpu()
    latent_figure(latent, autoencoder.layout.base_channels).save(run.folder / "figures" / "latent.png")
    results.figures.append(
        Figure(
            "The structured latent",
            "Channels of the first held-out image's latent: each base channel beside the detail channels that are "
            "aligned to it.",
            "figures/latent.png",
        )
    )


def _generation(run: Run, config: EvaluateConfig, sample: SampleConfig, results: Results) -> None:
    run.observer.say("measuring generation")
    device = run.accelerator.device
    upgraded = load_drawn(run).to(device)
    shared = {name: getattr(upgraded, name) for name in run.pair.text_parts}  # text encoders are in memory once
    base = run.pair.load(**shared).to(device)
    size, count = run.recipe.image_size, min(sample.count, JUDGED_IMAGES)
    results.run["summary"] = _summary(run, upgraded)
    sets = _sets(run, upgraded, base, count, config.batch_size)
    real_source = first(run.sources[1], count)
    real = torch.cat(
        [real_source.images(range(s, min(s + 64, len(real_source))), size) for s in range(0, len(real_source), 64)]
    )
    protocol = {**settings(sample), "seeds": f"{sample.seed} to {sample.seed + count - 1}"}
    measurements, distances = measure_generation(sets, real, protocol)
    results.measurements += measurements
    _sample_figures(run, sets, results)
    _previews(run, results)
    if config.claims:
        results.claims += generation_claims(distances)
    if config.speed_batch:
        _speed(run, config, sample, upgraded, base, results)


def _summary(run: Run, upgraded: Any) -> str:
    layout, size = upgraded.vae.layout, run.recipe.image_size
    side = size // upgraded.vae.compression
    return (
        f"A pretrained pair that draws {_base_size(run, upgraded)} px on a latent grid of {side} x {side} now draws "
        f"{size} px on the same grid: {layout.base_channels} base channels as they were, "
        f"{layout.detail_channels} detail channels beside them. Trained on {len(run.sources[0]):,} images, judged "
        f"on {len(run.sources[1]):,} others."
    )


def _base_size(run: Run, upgraded: Any) -> int:
    """Side of the pretrained pair's images on the same tokens."""
    return run.recipe.image_size // upgraded.vae.config.scale


def _sample_figures(run: Run, sets: Mapping[str, Tensor], results: Results) -> None:
    rows = [(name, images[:9]) for name, images in sets.items()]
    labelled_strip(rows).save(run.folder / "figures" / "same-seeds.png")
    notes = "; ".join(f"{name}: {note}" for name, note in SETS.items())
    results.figures.append(
        Figure(
            "Same seeds, drawn three ways",
            f"A column is one seed and one class or prompt. {notes}.",
            "figures/same-seeds.png",
        )
    )
    for name in (UPSAMPLED, UPGRADED):
        file = f"figures/samples-{name.replace(' ', '-')}.png"
        image_grid(sets[name][:36], columns=9).save(run.folder / file)
        results.figures.append(Figure(f"Samples: {name}", f"In turn, not chosen: {SETS[name]}.", file))


def _previews(run: Run, results: Results) -> None:
    """The last grid that each fine-tuning drew on its way."""
    for name in ("finetune", "realism"):
        grids = sorted((run.folder / "previews").glob(f"{name}-*.png"))
        if grids:
            step = int(grids[-1].stem.rpartition("-")[2])
            note = f"Fixed prompts or classes and seeds, averaged weights, after {step:,} steps of {name}."
            results.figures.append(Figure(f"On the way: {name}", note, f"previews/{grids[-1].name}"))


@torch.no_grad()
def _sets(run: Run, upgraded: Any, base: Any, count: int, batch_size: int) -> dict[str, Tensor]:
    assert run.recipe.sample is not None
    layout, latents = upgraded.vae.layout, torch.cat(list(drawn_latents(run, count)))
    sets: dict[str, list[Tensor]] = {UPSAMPLED: [], UPGRADED: [], CONTROL: []}
    run.observer.begin("evaluate: base pair", count)
    small = drawer_of(run, base, _base_size(run, upgraded))
    for indices, drawn in draw_all(small, count, run.recipe.sample.batch_size):
        sets[UPSAMPLED].append(small.images(drawn, size=run.recipe.image_size))
        run.observer.advance(indices[-1] + 1)
    run.observer.end()
    large = drawer_of(run, upgraded, run.recipe.image_size)
    for batch in latents.split(batch_size):
        sets[UPGRADED].append(large.images(batch))
        sets[CONTROL].append(large.images(_with_random_detail(layout, batch)))
    return {name: torch.cat(parts) for name, parts in sets.items()}


def _with_random_detail(layout: LatentLayout, latents: Tensor) -> Tensor:
    base, detail = layout.split(latents)
    noise = torch.randn(detail.shape, generator=torch.Generator().manual_seed(0))
    return layout.join(base, noise.to(detail))


def _speed(
    run: Run,
    config: EvaluateConfig,
    sample: SampleConfig,
    upgraded: Any,
    base: Any,
    results: Results,
) -> None:
    run.observer.say("measuring speed")
    scale = upgraded.vae.config.scale
    native = _native(base, scale)
    indices = list(range(config.speed_batch))

    def draw(pipeline: Any) -> Tensor:
        drawer = drawer_of(run, pipeline, run.recipe.image_size)
        return drawer.images(drawer.latents(indices))

    pipelines = {"upgraded": upgraded, f"native, {scale * scale}x the tokens": native}
    tokens = {name: _tokens(run, one) for name, one in pipelines.items()}
    protocol = {
        "image": f"{run.recipe.image_size} px",
        "steps": sample.steps,
        "guidance": sample.guidance_scale,
        "precision": f"transformer {sample.precision}, decoder fp32",
        "memory": "peak of the device while drawing, with the weights of all timed pairs on it",
        "native": "the base transformer's geometry on a larger grid, random weights; base decoder",
    }
    measurements, seconds = measure_speed(
        {name: lambda one=one: draw(one) for name, one in pipelines.items()},
        tokens,
        config.speed_batch,
        run.accelerator.device,
        protocol,
    )
    results.measurements += measurements
    if config.claims:
        results.claims.append(speed_claim(seconds, scale * scale))


def _tokens(run: Run, pipeline: Any) -> int:
    side = run.recipe.image_size // compression_of(pipeline.vae)
    return backbone_of(pipeline.transformer).num_tokens(pipeline.transformer.config, side, side)


def _native(base: Any, scale: int) -> Any:
    """The base pair's geometry at the large size: `scale` squared times the tokens. Weights are random."""
    # Private entries stay behind: diffusers would put default values back over ours.
    public = {key: value for key, value in base.transformer.config.items() if not key.startswith("_")}
    config = {**public, "sample_size": base.transformer.config.sample_size * scale}
    transformer = type(base.transformer).from_config(config).to(base.transformer.device).eval()
    return backbone_of(transformer).rebuild(base, {**base.components, "transformer": transformer})
