"""`davae generate`: images from prompts by a saved text pipeline, as files to look at or as captioned tar shards.

The shards are data sets in the form that `davae` itself trains on: the paper's second stage (S7) learns from images
that another model drew.
"""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from davae.sampling.text import check_prompts
from davae.stages.generate.artist import Artist, Generation, Job
from davae.stages.generate.engine import Engine
from davae.stages.generate.folder import Generated
from davae.stages.generate.source import SavedPipeline, TextSource
from davae.train.interrupt import terminable
from davae.train.journal import Observer, Silent

__all__ = ["Engine", "Generation", "SavedPipeline", "TextSource", "generate"]


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
    settings, engine, state = settings or Generation(), engine or Engine(), _processes()
    observer = (observer or Silent()) if state.is_main_process else Silent()
    check_prompts(prompts)
    engine.require(state.device)
    job = Job(source, baseline, list(prompts), settings, engine)
    folder = Generated(
        out,
        job.inputs(state.device),
        job.captions,
        kinds=job.kinds,
        form=settings.form,
        unit=settings.shard_size if settings.shards else settings.batch,
        shards=settings.shards,
    )
    folder.check()
    state.wait_for_everyone()
    if state.is_main_process:
        folder.begin()
    state.wait_for_everyone()
    with terminable():
        _draw_missing(job, folder, state, observer)
        state.wait_for_everyone()
        if state.is_main_process and not settings.shards:
            folder.show()
    return out


def _processes() -> PartialState:
    # Without a GPU, accelerate joins processes only if it is told so. One may finish a shard long before another.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def _draw_missing(job: Job, folder: Generated, state: PartialState, observer: Observer) -> None:
    mine = folder.units[state.process_index :: state.num_processes]
    missing = [unit for unit in mine if not folder.is_done(unit)]
    total, left = sum(map(len, mine)), sum(map(len, missing))
    if missing:
        artist = Artist(job, state.device, observer)
        observer.begin("generate", total, total - left)
        done = total - left
        for unit in missing:
            folder.write(unit, artist.draw(unit, lambda drawn, before=done: observer.advance(before + drawn)))
            done += len(unit)
        observer.end()
