"""`davae generate`: images from prompts by a saved text pipeline, as files to look at or as captioned tar shards.

The shards are data sets in the form that `davae` itself trains on: the paper's second stage (S7) learns from images
that another model drew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from davae.core.observer import Observer, Silent
from davae.report.figures import image_grid, labelled_strip
from davae.run.accelerator import PATIENCE
from davae.run.writer import only_writer
from davae.sampling.engine import Engine
from davae.sampling.image_formats import GeneratedImage
from davae.sampling.stock_text import check_prompts
from davae.sampling.store import ImageStore
from davae.sampling.upscaling import Upscaler
from davae.tools.generate.album import Album, Series, open_album
from davae.tools.generate.job import Job
from davae.tools.generate.job_sampler import JobSampler
from davae.tools.generate.settings import Generation
from davae.tools.generate.text_source import TextSource
from davae.train.interrupt import terminable

SHOWN, SHOWN_ROWS = 36, 8
"""Images of the grid, and columns where others stand beside them."""
COLUMNS = 6


def generate(
    source: TextSource,
    prompts: Sequence[str],
    out: Path,
    settings: Generation | None = None,
    engine: Engine | None = None,
    *,
    baseline: TextSource | None = None,
    upscaler: Upscaler | None = None,
    observer: Observer | None = None,
) -> Path:
    """Draw `count` images a prompt into a folder. Run again, it draws what is missing; other images are added.

    Several processes (accelerate, torchrun) share the work. Images are `000000.png` with a `.json` of facts and a
    `grid.png`, or in shards `000000.tar` with members .png, .txt (the prompt) and .json.

    Args:
        source: the pipeline.
        prompts: what is drawn.
        out: new folder, or one that earlier calls drew into.
        settings: what is drawn and how it is kept.
        engine: how the pipeline runs.
        baseline: the pretrained pipeline that was upgraded: it draws every image from the same seed at its own,
            smaller size, and is enlarged to the size of the upgraded one, to stand beside it.
        upscaler: what enlarges it; None does so bicubically, before the image is rounded to 8 bits.
        observer: who watches.

    Returns:
        `out`.

    Raises:
        LockedError: another command draws into the folder.
        ValueError: prompts, size, settings, baseline, upscaler or folder cannot be used; no pipeline was loaded then.
    """
    settings, engine = settings or Generation(), engine or Engine()
    # Without a GPU, accelerate joins processes only if it is told so. One may finish a shard long before another.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    observer = (observer or Silent()) if state.is_main_process else Silent()
    check_prompts(prompts)
    engine.require(state.device)
    job = Job(source, baseline, list(prompts), settings, engine, upscaler)
    with only_writer(out, f"Folder {out}", state.is_main_process):
        album, asked = open_album(out, job, state.device).with_job(job, state.device)
        state.wait_for_everyone()  # all have read what the main process replaces now
        if state.is_main_process:
            album.save(out)
        with terminable():
            _draw_missing(job, asked, out, state, observer)
            state.wait_for_everyone()
            if state.is_main_process and not settings.shards:
                _show(job, album, asked[0], out)
    return out


def _store(job: Job, series: Series, out: Path) -> ImageStore:
    settings = job.settings
    return ImageStore(
        out,
        {},
        len(series.captions),
        unit=settings.shard_size if settings.shards else settings.batch,
        formats=["tar" if settings.shards else settings.form],
        kinds=job.kinds,
        members=settings.form,
        facts=True,
        first=series.first,
    )


def _draw_missing(job: Job, asked: Sequence[Series], out: Path, state: PartialState, observer: Observer) -> None:
    """This process's share of what is missing."""
    stores = [_store(job, series, out) for series in asked]
    place = (state.process_index, state.num_processes)
    missing = [store.missing(*place) for store in stores]
    total = sum(len(unit) for store in stores for unit in store.units[place[0] :: place[1]])
    left = sum(len(unit) for units in missing for unit in units)
    if left == 0:
        return
    observer.begin("generate", total, total - left)
    for series, store, units in zip(asked, stores, missing, strict=True):
        if units:
            sampler = JobSampler(_job_of(series, job), series.first, state.device, observer)
        for unit in units:
            store.write(unit, _reported(sampler.draw(unit), observer, total - left))
            left -= len(unit)
    observer.end()


def _job_of(series: Series, job: Job) -> Job:
    """The job that a series alone is."""
    return replace(job, prompts=list(series.captions), settings=replace(job.settings, seed=series.seed, count=1))


def _reported(parts: Iterator[list[GeneratedImage]], observer: Observer, done: int) -> Iterator[list[GeneratedImage]]:
    """The parts of a unit; the observer hears of each once it is kept."""
    for part in parts:
        yield part
        done += len(part)
        observer.advance(done)


def _show(job: Job, album: Album, asked: Series, out: Path) -> None:
    """A grid of the first images of the folder that are like those asked for; a row each for what stands beside."""
    alike = [series for series in album.series if _looks(series) == _looks(asked)]
    numbers = [series.first + index for series in alike for index in range(len(series.captions))]
    store = _store(job, asked, out)
    most = SHOWN if len(store.kinds) == 1 else SHOWN_ROWS
    shown = [number for number in numbers[:most] if store.is_done([number])]
    rows = [(kind or "image", store.read(shown, kind)) for kind in store.kinds]
    if len(rows) == 1:
        store.show(image_grid(rows[0][1], columns=min(COLUMNS, len(shown))))
    else:
        store.show(labelled_strip(rows))


def _looks(series: Series) -> list[Any]:
    return [series.settings[name] for name in ("height", "width", "kinds")]
