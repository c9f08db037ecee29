"""`davae generate`: images from prompts by a saved text pipeline, as files to look at or as captioned tar shards.

The shards are data sets in the form that `davae` itself trains on: the paper's second stage (S7) learns from images
that another model drew.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from accelerate import PartialState

from davae.core.observer import Observer, Silent
from davae.report.figures import image_grid, labelled_strip
from davae.run.accelerator import PATIENCE
from davae.sampling.engine import Engine
from davae.sampling.image_formats import GeneratedImage
from davae.sampling.stock_text import check_prompts
from davae.sampling.store import ImageStore
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
    observer: Observer | None = None,
) -> Path:
    """Draw `count` images a prompt into a folder. Run again, it draws what is missing.

    Several processes (accelerate, torchrun) share the work. Images are `000000.png` with a `.json` of facts and a
    `grid.png`, or in shards `000000.tar` with members .png, .txt (the prompt) and .json.

    Args:
        source: the pipeline.
        prompts: what is drawn.
        out: new folder, or one that the same call began.
        settings: what is drawn and how it is kept.
        engine: how the pipeline runs.
        baseline: the pretrained pipeline that was upgraded: it draws every image from the same seed at its own,
            smaller size, and bicubic enlargement brings it to the size of the upgraded one, to stand beside it.
        observer: who watches.

    Returns:
        `out`.

    Raises:
        ValueError: prompts, size, settings, baseline or folder cannot be used; nothing was loaded then.
    """
    settings, engine = settings or Generation(), engine or Engine()
    # Without a GPU, accelerate joins processes only if it is told so. One may finish a shard long before another.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    observer = (observer or Silent()) if state.is_main_process else Silent()
    check_prompts(prompts)
    engine.require(state.device)
    job = Job(source, baseline, list(prompts), settings, engine)
    store = _store(job, out, state.device)
    store.require_same_inputs()
    state.wait_for_everyone()
    if state.is_main_process:
        store.begin()
    state.wait_for_everyone()
    with terminable():
        _draw_missing(job, store, state, observer)
        state.wait_for_everyone()
        if state.is_main_process and not settings.shards:
            _show(store)
    return out


def _store(job: Job, out: Path, device: torch.device) -> ImageStore:
    settings = job.settings
    return ImageStore(
        out,
        job.inputs(device),
        len(job.captions),
        unit=settings.shard_size if settings.shards else settings.batch,
        formats=["tar" if settings.shards else settings.form],
        kinds=job.kinds,
        members=settings.form,
        marker="generation.json",
        facts=True,
    )


def _draw_missing(job: Job, store: ImageStore, state: PartialState, observer: Observer) -> None:
    mine = store.units[state.process_index :: state.num_processes]
    missing = store.missing(state.process_index, state.num_processes)
    if not missing:
        return
    sampler = JobSampler(job, state.device, observer)
    total, left = sum(map(len, mine)), sum(map(len, missing))
    observer.begin("generate", total, total - left)
    for unit in missing:
        store.write(unit, _reported(sampler.draw(unit), observer, total - left))
        left -= len(unit)
    observer.end()


def _reported(parts: Iterator[list[GeneratedImage]], observer: Observer, done: int) -> Iterator[list[GeneratedImage]]:
    """The parts of a unit; the observer hears of each once it is kept."""
    for part in parts:
        yield part
        done += len(part)
        observer.advance(done)


def _show(store: ImageStore) -> None:
    """A grid of the first images; with a row each for what stands beside them."""
    shown = range(min(SHOWN if len(store.kinds) == 1 else SHOWN_ROWS, store.count))
    rows = [(kind or "image", store.read(shown, kind)) for kind in store.kinds]
    if len(rows) == 1:
        store.show(image_grid(rows[0][1], columns=min(COLUMNS, len(shown))))
    else:
        store.show(labelled_strip(rows))
