"""`davae sample`: images from the upgraded pair, or from a pair as it is, sharded over processes, resumable."""

import torch

from davae.report.figures import image_grid
from davae.run import inputs, pipelines
from davae.run.execute import Stage
from davae.run.run import Run
from davae.run.samples import Samples, stand
from davae.sampling.image_formats import IMAGE, GeneratedImage
from davae.sampling.sampler import Sampler

SHOWN = 36
"""Images of the grid."""


def run(run: Run) -> None:
    """Draw `count` images to samples/: latents in shards, a PNG an image or an npz of all, a grid."""
    samples = Samples(run)
    if run.is_main:
        samples.prepare()
    run.accelerator.wait_for_everyone()
    pipeline = pipelines.drawing(run).to(run.accelerator.device)
    sampler = pipelines.sampler(run, pipeline, run.recipe.image_size)
    if sampler.warning is not None:
        run.observer.say(sampler.warning)
    _draw(run, samples, sampler)
    run.accelerator.wait_for_everyone()
    if run.is_main:
        samples.store.finish(pipelines.asked(run, sampler, range(samples.config.count)))
        shown = torch.cat(list(samples.latents.first(SHOWN)))
        samples.store.show(image_grid(sampler.images(shown), columns=9))
        samples.note()


def _draw(run: Run, samples: Samples, sampler: Sampler) -> None:
    """This process's share of what is missing."""
    accelerator, store, latents = run.accelerator, samples.store, samples.latents
    mine = store.units[accelerator.process_index :: accelerator.num_processes]
    missing = [unit for unit in mine if not (latents.has(unit) and store.is_done(unit))]
    done = samples.config.count - sum(map(len, missing))
    run.observer.begin("sample", samples.config.count, done)
    for unit in missing:
        drawn = latents.load(unit) if latents.has(unit) else latents.save(unit, sampler.latents(unit))
        images = sampler.images(drawn)
        kept = [GeneratedImage(index, {IMAGE: image}) for index, image in zip(unit, images, strict=True)]
        store.write(unit, [kept])
        done += len(unit)
        run.observer.advance(done)
    run.observer.end()


STAGE = Stage(
    name="sample",
    verb="sample",
    section="sample",
    inputs=inputs.samples,
    run=run,
    output=lambda run: run.folder.gallery,
    stands=stand,
)
