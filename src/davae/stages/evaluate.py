"""`davae evaluate`: reconstruction, generation and speed of a run, side by side with the pretrained pair."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from davae.backbones.registry import backbone_of
from davae.core.files import folder_hash
from davae.core.pixels import uint8_to_signed
from davae.data.hold_out import first
from davae.data.image_source import ImageSource
from davae.evaluate.claims import generation_claims, reconstruction_claims, speed_claim
from davae.evaluate.generation import (
    CONTROL,
    REAL,
    SETS,
    UPGRADED,
    UPSAMPLED,
    JudgedSet,
    measure_features,
    measure_generation,
    with_detail_weight,
    with_random_detail,
)
from davae.evaluate.hardware import hardware
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.reconstruction import measure_reconstruction
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.results import Control, Figure, Measurement, Results, View
from davae.evaluate.spaces.catalogue import SPACES
from davae.evaluate.spaces.space import Loading
from davae.evaluate.speed import measure_speed
from davae.evaluate.stream import Extraction
from davae.models.adapter import adapt
from davae.models.autoencoder import AutoencoderDA
from davae.models.chunking import chunks
from davae.recipe import EvaluateConfig
from davae.report.figures import image_grid, labelled_strip, latent_figure
from davae.run import build, inputs, pipelines
from davae.run.checks import judged_training_images
from davae.run.execute import Stage
from davae.run.image_sets import ImageSets, image_sets
from davae.run.rounds import rounds_of
from davae.run.run import Run
from davae.run.samples import Samples

JUDGED_IMAGES = 2048
"""Drawn images that are compared at most: the patches of a set are in memory."""
SHOWN = {128: (24, 6), 256: (12, 4)}
"""Side -> drawn images of a figure, and columns; of larger ones there are 4 in two."""
DETAIL_WEIGHTS = {"no detail": 0.0, "half": 0.5, "all": 1.0}
"""Positions of the detail dial."""
HELD_OUT = "held-out images"
_AT_ONCE = 64  # images that are loaded
T = TypeVar("T")


def depends_on(run: Run) -> dict[str, Any]:
    """What the results depend on."""
    result: dict[str, Any] = {
        "evaluate": inputs.settings(run.recipe.evaluate),
        "data": run.data.test.fingerprint,
        "image_size": run.recipe.image_size,
    }
    if run.recipe.has("tokenizer"):
        result["tokenizer"] = folder_hash(run.result("tokenizer"))
    if run.recipe.sample is not None:
        result["sample"] = inputs.settings(run.recipe.sample)
        result |= inputs.pipeline(run)
    return result


def run(run: Run) -> None:
    """Measure on all processes; the main one writes results.json and the figures."""
    config = run.recipe.evaluate
    assert config is not None
    results = Results(run={"name": run.recipe.name, "hardware": hardware()})
    _reconstruction(run, config, results)
    if run.recipe.sample is not None:
        _generation(run, config, results)
    if run.is_main:
        results.save(run.folder.results)


def _reconstruction(run: Run, config: EvaluateConfig, results: Results) -> None:
    run.observer.say("measuring reconstruction")
    autoencoder = build.trained_tokenizer(run)
    source = first(run.data.test, config.reconstructions)
    report = measure_reconstruction(
        autoencoder,
        source,
        run.recipe.image_size,
        config.batch_size,
        perceptual=_everywhere(run, "LPIPS", build.perceptual_at_hand(run)),
        fid=_everywhere(run, "rFID", ReconstructionFID.at_hand(autoencoder.device)),
        processes=run.processes,
    )
    if not run.is_main:
        return
    results.measurements += report.measurements
    _show(
        run,
        results,
        "reconstruction",
        labelled_strip(list(report.strips.items())),
        "Reconstruction",
        "Held-out images: the input, the pretrained autoencoder at the same tokens enlarged, the upgraded "
        "autoencoder, and what its decoder makes of no detail and of random detail.",
    )
    if autoencoder.layout.detail_channels >= autoencoder.layout.base_channels:  # else there are no groups to show
        _latent(run, autoencoder, source, results)
    if config.claims:
        results.claims += reconstruction_claims(report.measurements)


def _everywhere(run: Run, column: str, network: T | None) -> T | None:
    """What a column is measured with, where every process has its weights."""
    if all(run.processes.gather([network is not None])):
        return network
    run.observer.say(f"reconstruction without {column}: its weights are not on this machine")
    return None


def _latent(run: Run, autoencoder: AutoencoderDA, source: ImageSource, results: Results) -> None:
    adapter = adapt(autoencoder)
    images = uint8_to_signed(source.images([0], run.recipe.image_size)).to(autoencoder.device)
    with torch.no_grad():
        latent = adapter.raw_scaling.normalise(adapter.moments(images)[0])[0].cpu()
    _show(
        run,
        results,
        "latent",
        latent_figure(latent, autoencoder.layout.base_channels),
        "The structured latent",
        "Channels of the first held-out image's latent: each base channel beside the detail channels that are "
        "aligned to it.",
    )


def _generation(run: Run, config: EvaluateConfig, results: Results) -> None:
    run.observer.say("measuring generation")
    device, sample = run.accelerator.device, pipelines.sample_config(run)
    upgraded = pipelines.drawing(run).to(device)
    text = {name: getattr(upgraded, name) for name in run.pair.text_parts}  # text encoders are in memory once
    base = run.pair.load(**text).to(device)
    count = min(sample.count, JUDGED_IMAGES)
    protocol = {**inputs.settings(sample), "seeds": f"{sample.seed} to {sample.seed + count - 1}"}
    real, others = first(run.data.test, count), first(run.data.train, count)
    counts = {HELD_OUT: len(real), **dict.fromkeys(SETS, count)} | ({REAL: len(others)} if config.metrics else {})
    with image_sets(run, counts) as shared:
        _write_real(run, shared, HELD_OUT, real)
        if config.metrics:
            _write_real(run, shared, REAL, others)
        _write_drawn(run, shared, upgraded, base, count, config.batch_size)
        run.accelerator.wait_for_everyone()
        sets = shared.read()
        held_out = sets.pop(HELD_OUT)
        features = []
        if config.metrics:
            asked = pipelines.asked(run, pipelines.sampler(run, upgraded, run.recipe.image_size), range(count))
            judged = {name: JudgedSet(images, asked) for name, images in sets.items() if name != REAL}
            judged[REAL] = JudgedSet(sets.pop(REAL), pipelines.asked_of_real(run, others))
            features = _features(run, config, judged, held_out, protocol)
        if run.is_main:
            measurements = measure_generation(sets, held_out, protocol)
            results.measurements += [*measurements, *features]
            results.run["summary"] = _summary(run, upgraded)
            _sample_figures(run, sets, results)
            _detail_dial(run, config, upgraded, results)
            _previews(run, results)
            if config.claims:
                results.claims += generation_claims(measurements)
    if run.is_main and config.speed_batch:
        _speed(run, config, upgraded, base, results)


def _features(
    run: Run, config: EvaluateConfig, sets: Mapping[str, JudgedSet], real: Tensor, protocol: Mapping[str, Any]
) -> list[Measurement]:
    """What `evaluate.metrics` asks for, of the drawn sets and of real images in their place."""
    loading = Loading(protocol=config.protocol, say=run.observer.say)
    extraction = Extraction(device=run.accelerator.device, processes=run.processes, observer=run.observer)
    metrics = feature_metrics(config.metrics)
    return measure_features(sets, real, protocol, metrics, lambda name: SPACES[name](loading), extraction)


def _summary(run: Run, upgraded: Any) -> str:
    layout, size = upgraded.vae.layout, run.recipe.image_size
    side = size // upgraded.vae.compression
    judged = judged_training_images(run).items()
    seen = "".join(f"; {count:,} of these were trained on by {earlier}" for earlier, count in judged)
    return (
        f"A pretrained pair that draws {_base_size(run, upgraded)} px on a latent grid of {side} x {side} now draws "
        f"{size} px on the same grid: {layout.base_channels} base channels as they were, "
        f"{layout.detail_channels} detail channels beside them. Trained on {len(run.data.train):,} images, judged "
        f"on {len(run.data.test):,} others{seen}."
    )


def _base_size(run: Run, upgraded: Any) -> int:
    """Side of the pretrained pair's images on the same tokens."""
    return run.recipe.image_size // upgraded.vae.config.scale


def _show(run: Run, results: Results, name: str, picture: Image, title: str, caption: str) -> None:
    """Keep a picture beside the results, and say in them what it is."""
    path = run.folder.figure(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    results.figures.append(Figure(title, caption, run.folder.relative(path)))


def _show_views(
    run: Run, results: Results, name: str, pictures: Mapping[str, Image], control: Control, title: str, caption: str
) -> None:
    """Keep several pictures of one size, between which a reader of the page changes."""
    views = []
    for place, (label, picture) in enumerate(pictures.items()):
        path = run.folder.figure(f"{name}-{place}")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        views.append(View(label, run.folder.relative(path)))
    results.figures.append(Figure(title, caption, views[-1].path, views, control))


def _sample_figures(run: Run, sets: Mapping[str, Tensor], results: Results) -> None:
    strip = labelled_strip([(name, images[:9]) for name, images in sets.items()])
    notes = "; ".join(f"{name}: {note}" for name, note in SETS.items())
    caption = f"A column is one seed and one class or prompt. {notes}."
    _show(run, results, "same-seeds", strip, "Same seeds, drawn three ways", caption)
    count, columns = _shown(run)
    shown = {name: image_grid(sets[name][:count], columns) for name in (UPSAMPLED, UPGRADED)}
    sides = f"Left of the handle: {SETS[UPSAMPLED]}. Right of it: {SETS[UPGRADED]}."
    caption = f"The first {count} in turn, not chosen. {sides}"
    _show_views(run, results, "samples", shown, "wipe", "Enlarged and upgraded", caption)


def _detail_dial(run: Run, config: EvaluateConfig, upgraded: Any, results: Results) -> None:
    """The same drawn latents with more and less of their detail."""
    count, columns = _shown(run)
    sampler, layout = pipelines.sampler(run, upgraded, run.recipe.image_size), upgraded.vae.layout
    latents = torch.cat(list(Samples(run).latents.first(count)))
    shown = {}
    for label, weight in DETAIL_WEIGHTS.items():
        batches = with_detail_weight(layout, latents, weight).split(config.batch_size)
        shown[label] = image_grid(torch.cat([sampler.images(batch) for batch in batches]), columns)
    caption = (
        "The same drawn latents, their detail channels times 0, 1/2 and 1: what the base alone says, and what the "
        "detail adds."
    )
    _show_views(run, results, "detail", shown, "dial", "How much detail", caption)


def _shown(run: Run) -> tuple[int, int]:
    return next((shown for side, shown in SHOWN.items() if run.recipe.image_size <= side), (4, 2))


def _previews(run: Run, results: Results) -> None:
    """The last grid that each round of fine-tuning drew on its way."""
    for current in rounds_of(run):
        for step, grid in run.folder.previews(current.name)[-1:]:
            note = f"Fixed prompts or classes and seeds, averaged weights, after {step:,} steps of {current.name}."
            results.figures.append(Figure(f"On the way: {current.name}", note, run.folder.relative(grid)))


def _write_real(run: Run, sets: ImageSets, name: str, source: ImageSource) -> None:
    """This process's share of real images."""
    for indices in run.processes.mine(list(chunks(len(source), _AT_ONCE))):
        sets.write(name, indices.start, source.images(indices, sets.size))


@torch.no_grad()
def _write_drawn(run: Run, sets: ImageSets, upgraded: Any, base: Any, count: int, batch_size: int) -> None:
    """This process's share of the images of the same seeds, drawn three ways."""
    samples, config, processes = Samples(run), pipelines.sample_config(run), run.processes
    samples.require_all()
    small, done = pipelines.sampler(run, base, _base_size(run, upgraded)), 0
    mine = processes.mine(list(chunks(count, config.batch_size)))
    run.observer.begin("evaluate: base pair", sum(map(len, mine)))
    for indices in mine:
        sets.write(UPSAMPLED, indices.start, small.images(small.latents(indices), size=sets.size))
        done += len(indices)
        run.observer.advance(done)
    run.observer.end()
    large = pipelines.sampler(run, upgraded, sets.size)
    latents = torch.cat(list(samples.latents.first(count)))
    for indices in processes.mine(list(chunks(count, batch_size))):
        batch = latents[indices.start : indices.stop]
        sets.write(UPGRADED, indices.start, large.images(batch))
        random = with_random_detail(upgraded.vae.layout, batch, [f"image {index}" for index in indices], config.seed)
        sets.write(CONTROL, indices.start, large.images(random))


def _speed(run: Run, config: EvaluateConfig, upgraded: Any, base: Any, results: Results) -> None:
    run.observer.say("measuring speed")
    scale, sample = upgraded.vae.config.scale, pipelines.sample_config(run)
    indices = range(config.speed_batch)

    def draw(pipeline: Any) -> Tensor:
        sampler = pipelines.sampler(run, pipeline, run.recipe.image_size)
        return sampler.images(sampler.latents(indices))

    timed = {"upgraded": upgraded, f"native, {scale * scale}x the tokens": _native(base, scale)}
    protocol = {
        "image": f"{run.recipe.image_size} px",
        "steps": sample.steps,
        "guidance": sample.guidance_scale,
        "precision": f"transformer {sample.precision}, decoder fp32",
        "memory": "peak of the device while drawing, with the weights of all timed pairs on it",
        "native": "the base transformer's geometry on a larger grid, random weights; base decoder",
    }
    measurements, seconds = measure_speed(
        {name: partial(draw, pipeline) for name, pipeline in timed.items()},
        {name: _tokens(run, pipeline) for name, pipeline in timed.items()},
        config.speed_batch,
        run.accelerator.device,
        protocol,
    )
    results.measurements += measurements
    if config.claims:
        results.claims.append(speed_claim(seconds, scale * scale))


def _tokens(run: Run, pipeline: Any) -> int:
    side = run.recipe.image_size // adapt(pipeline.vae).compression
    return backbone_of(pipeline.transformer).num_tokens(pipeline.transformer.config, side, side)


def _native(base: Any, scale: int) -> Any:
    """The base pair's geometry at the large size: `scale` squared times the tokens. Weights are random."""
    # Private entries stay behind: diffusers would put default values back over ours.
    public = {key: value for key, value in base.transformer.config.items() if not key.startswith("_")}
    config = {**public, "sample_size": base.transformer.config.sample_size * scale}
    transformer = type(base.transformer).from_config(config).to(base.transformer.device).eval()
    return backbone_of(transformer).rebuild(base, {**base.components, "transformer": transformer})


STAGE = Stage(
    name="evaluate",
    verb="evaluate",
    section="evaluate",
    inputs=depends_on,
    run=run,
    output=lambda run: run.folder.results,
    stands=Results.stand,
)
