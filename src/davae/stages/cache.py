"""`davae cache`: the structured latents of the training images, encoded once."""

from typing import Any

from davae.data.cache_files import Part
from davae.stages.encode import encode_source
from davae.stages.phase import Phase, PhaseName
from davae.stages.run import Run, folder_hash, settings


def inputs(run: Run, phase: PhaseName = "finetune") -> dict[str, Any]:
    """What the cache depends on."""
    return {
        "cache": settings(run.recipe.cache),
        "image_size": run.recipe.image_size,
        "data": Phase(run, phase).source.fingerprint,
        "tokenizer": folder_hash(run.path_of("tokenizer")),
    }


def work(run: Run, phase: PhaseName = "finetune") -> None:
    """Encode, each process its share; whole shards of an interrupted run are kept."""
    config, accelerator = run.recipe.cache, run.accelerator
    assert config is not None
    encode_source(
        run.tokenizer(),
        Phase(run, phase).source,
        run.recipe.image_size,
        Phase(run, phase).folder / "latents",
        config,
        accelerator.device,
        run.observer,
        run.buckets,
        Part(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
    )
