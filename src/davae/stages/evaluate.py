"""`davae evaluate`: reconstruction, generation and speed of a run, side by side with the pretrained pair."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
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
from davae.models.lightningdit import LightningDiT
from davae.recipe import EvaluateConfig, SampleConfig
from davae.report.figures import image_grid, labelled_strip, latent_figure
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages.drawing import decode_images, draw_all, draw_latents, to_uint8
from davae.stages.run import Run, folder_hash, load_pair, settings
from davae.stages.sample import drawn_latents


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
        result["pipeline"] = folder_hash(run.path_of("finetune"))
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
    upgraded = load_pair(run.path_of("finetune")).to(device)
    base = load_pair(run.pair_path).to(device)
    size = run.recipe.image_size
    results.run["summary"] = _summary(run, upgraded, base)
    sets = _sets(run, upgraded, base, sample, config.batch_size)
    real_source = first(run.sources[1], sample.count)
    real = torch.cat(
        [real_source.images(range(s, min(s + 64, len(real_source))), size) for s in range(0, len(real_source), 64)]
    )
    protocol = {**settings(sample), "seeds": f"{sample.seed} to {sample.seed + sample.count - 1}"}
    measurements, distances = measure_generation(sets, real, protocol)
    results.measurements += measurements
    _sample_figures(run, sets, results)
    if config.claims:
        results.claims += generation_claims(distances)
    if config.speed_batch:
        _speed(run, config, sample, upgraded, base, results)


def _summary(run: Run, upgraded: LightningDiTPipeline, base: LightningDiTPipeline) -> str:
    layout = upgraded.vae.layout
    side = base.transformer.config.sample_size
    return (
        f"A pretrained pair that draws {base.image_size} px on a latent grid of {side} x {side} now draws "
        f"{upgraded.image_size} px on the same grid: {layout.base_channels} base channels as they were, "
        f"{layout.detail_channels} detail channels beside them. Trained on {len(run.sources[0]):,} images, judged "
        f"on {len(run.sources[1]):,} others."
    )


def _sample_figures(run: Run, sets: Mapping[str, Tensor], results: Results) -> None:
    rows = [(name, images[:9]) for name, images in sets.items()]
    labelled_strip(rows).save(run.folder / "figures" / "same-seeds.png")
    notes = "; ".join(f"{name}: {note}" for name, note in SETS.items())
    results.figures.append(
        Figure("Same seeds, drawn three ways", f"A column is one seed and class. {notes}.", "figures/same-seeds.png")
    )
    for name in (UPSAMPLED, UPGRADED):
        file = f"figures/samples-{name.replace(' ', '-')}.png"
        image_grid(sets[name][:36], columns=9).save(run.folder / file)
        results.figures.append(Figure(f"Samples: {name}", f"Every class in turn, not chosen: {SETS[name]}.", file))


@torch.no_grad()
def _sets(
    run: Run, upgraded: LightningDiTPipeline, base: LightningDiTPipeline, sample: SampleConfig, batch_size: int
) -> dict[str, Tensor]:
    layout, latents = upgraded.vae.layout, drawn_latents(run)
    sets: dict[str, list[Tensor]] = {UPSAMPLED: [], UPGRADED: [], CONTROL: []}
    run.observer.begin("evaluate: base pair", sample.count)
    size = (run.recipe.image_size, run.recipe.image_size)
    for indices, drawn in draw_all(base, sample, list(range(sample.count))):
        small = base.decode(drawn, output_type="pt")
        sets[UPSAMPLED].append(to_uint8(F.interpolate(small, size=size, mode="bicubic", align_corners=False)))
        run.observer.advance(indices[-1] + 1)
    run.observer.end()
    for batch in latents.split(batch_size):
        batch = batch.to(upgraded.vae.device)
        sets[UPGRADED].append(decode_images(upgraded, batch))
        sets[CONTROL].append(decode_images(upgraded, _with_random_detail(layout, batch)))
    return {name: torch.cat(parts) for name, parts in sets.items()}


def _with_random_detail(layout: LatentLayout, latents: Tensor) -> Tensor:
    base, detail = layout.split(latents)
    noise = torch.randn(detail.shape, generator=torch.Generator().manual_seed(0))
    return layout.join(base, noise.to(detail))


def _speed(
    run: Run,
    config: EvaluateConfig,
    sample: SampleConfig,
    upgraded: LightningDiTPipeline,
    base: LightningDiTPipeline,
    results: Results,
) -> None:
    run.observer.say("measuring speed")
    scale = run.recipe.image_size // base.image_size
    native = _native(base, scale)
    indices = list(range(config.speed_batch))

    def draw(pipeline: LightningDiTPipeline) -> Tensor:
        return decode_images(pipeline, draw_latents(pipeline, sample, indices))

    pipelines = {"upgraded": upgraded, f"native, {scale * scale}x the tokens": native}
    tokens = {name: _tokens(one.transformer) for name, one in pipelines.items()}
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


def _tokens(transformer: LightningDiT) -> int:
    side = transformer.config.sample_size
    return backbone_of(transformer).num_tokens(transformer.config, side, side)


def _native(base: LightningDiTPipeline, scale: int) -> LightningDiTPipeline:
    """The base pair's geometry at the large size: `scale` squared times the tokens. Weights are random."""
    # Private entries stay behind: diffusers would put default values back over ours.
    public = {key: value for key, value in base.transformer.config.items() if not key.startswith("_")}
    config = {**public, "sample_size": base.transformer.config.sample_size * scale}
    transformer = LightningDiT.from_config(config).to(base.transformer.device).eval()
    return LightningDiTPipeline(base.vae, transformer, base.scheduler)
