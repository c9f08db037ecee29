"""What a sweep measures of its runs beside section evaluate, as stages: the latent, and a base pair on its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from davae.core.files import folder_hash, replacing_folder
from davae.core.pixels import signed_to_unit, uint8_to_signed, uint8_to_unit
from davae.data.hold_out import first
from davae.evaluate.analysis import gather, measure_latents
from davae.evaluate.hardware import hardware
from davae.evaluate.metrics import GENERATED, PAIRED
from davae.evaluate.results import Measurement, Results
from davae.models.adapter import PlainAdapter, adapt
from davae.models.chunking import chunks
from davae.run import build, inputs
from davae.run.execute import Stage
from davae.run.pipelines import drawing, sample_config, sampler
from davae.run.run import Run
from davae.run.samples import Samples

FOLDER = "measures"
"""In a run's folder; each stage has one of its own in it."""
IMAGES = 256
"""Test images that a latent is looked at by, at most."""
_BATCH = 16
_DRAWN = "drawn"


def _latents(run: Run) -> list[Measurement]:
    """Spectrum, alignment and correlations of the upgraded latent."""
    source = first(run.data.test, IMAGES)
    run.observer.begin("latents", len(source))
    statistics, _ = gather(build.trained_tokenizer(run), source, run.recipe.image_size, _BATCH, run.observer)
    run.observer.end()
    return measure_latents(statistics, {"images": len(source), "size": run.recipe.image_size})[0]


def _latent_inputs(run: Run) -> dict[str, Any]:
    return {
        "data": run.data.test.fingerprint,
        "image_size": run.recipe.image_size,
        "tokenizer": folder_hash(run.result("tokenizer")),
        "images": IMAGES,
    }


@torch.no_grad()
def _base(run: Run) -> list[Measurement]:
    """Of a pair that section pretrain makes: its autoencoder's reconstructions, and what it draws."""
    section = build.pretrain(run)
    measurements = _reconstruction(run, section.image_size)
    return measurements + (_generation(run, section.image_size) if run.recipe.sample is not None else [])


def _reconstruction(run: Run, size: int) -> list[Measurement]:
    adapter = adapt(build.trained_base_autoencoder(run).to(run.accelerator.device).eval())
    assert isinstance(adapter, PlainAdapter)
    source, scores = first(run.data.test, IMAGES), []
    for indices in chunks(len(source), _BATCH):
        pixels = source.images(indices, size)
        latent = adapter.family.encode(adapter.model, uint8_to_signed(pixels).to(run.accelerator.device))
        rebuilt = signed_to_unit(adapter.family.decode(adapter.model, latent)).cpu()
        scores.append(torch.stack([metric.measure(rebuilt, uint8_to_unit(pixels)) for metric in PAIRED]))
    means = torch.cat(scores, dim=1).mean(dim=1).tolist()
    return [
        Measurement(
            "Base pair: reconstruction",
            "autoencoder",
            metric.name,
            mean,
            metric.unit,
            metric.better,
            {"images": len(source), "size": size, metric.key: metric.protocol},
        )
        for metric, mean in zip(PAIRED, means, strict=True)
    ]


def _generation(run: Run, size: int) -> list[Measurement]:
    samples = Samples(run)
    samples.require_all()
    draw = sampler(run, drawing(run).to(run.accelerator.device), size)
    images = torch.cat([draw.images(latents) for latents in samples.latents.first(sample_config(run).count)])
    source = first(run.data.test, len(images))
    real = torch.cat([source.images(indices, size) for indices in chunks(len(source), 64)])
    measurements = []
    for metric in GENERATED:
        protocol = {
            "generated": len(images),
            "real": len(real),
            "statistic": metric.protocol,
            "drawn": inputs.settings(sample_config(run)),
        }
        for column, value in metric.measure({_DRAWN: images}, real, 0)[_DRAWN].items():
            group = f"Base pair: {metric.group[0].lower()}{metric.group[1:]}"
            measurements.append(Measurement(group, _DRAWN, column, value, metric.unit, metric.better, protocol))
    return measurements


def _base_inputs(run: Run) -> dict[str, Any]:
    drawn = {} if run.recipe.sample is None else inputs.samples(run)
    return {"data": run.data.test.fingerprint, "pair": folder_hash(run.pair.folder(run.pair.parts)), **drawn}


def _stage(
    name: str,
    section: str,
    measure: Callable[[Run], list[Measurement]],
    depends_on: Callable[[Run], dict[str, Any]],
    portable: bool = False,
) -> Stage:
    def output(run: Run) -> Path:
        return run.folder.root / FOLDER / name

    def write(run: Run) -> None:
        with replacing_folder(output(run)) as folder:
            results = Results(run={"name": run.recipe.name, "hardware": hardware()}, measurements=measure(run))
            results.save(folder / "results.json")

    return Stage(
        name=name,
        verb="sweep",
        section=section,
        inputs=depends_on,
        run=write,
        output=output,
        stands=lambda path: Results.stand(path / "results.json"),
        portable=portable,
    )


MEASURES = (
    _stage("latents", "tokenizer", _latents, _latent_inputs, portable=True),
    _stage("base-pair", "pretrain.transformer", _base, _base_inputs),
)
"""After the stages of a run."""


def results_of(folder: Path) -> list[Measurement]:
    """Everything measured of the run in a folder; of a recipe without a section of it, less."""
    paths = [folder / "results.json", *sorted((folder / FOLDER).glob("*/results.json"))]
    return [item for path in paths if path.is_file() for item in Results.load(path).measurements]
