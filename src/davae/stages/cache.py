"""`davae cache`: the structured latents of the training images, encoded once."""

from typing import Any

from davae.stages.encode import encode_source
from davae.stages.run import Run, folder_hash, settings


def inputs(run: Run) -> dict[str, Any]:
    """What the cache depends on."""
    return {
        "cache": settings(run.recipe.cache),
        "image_size": run.recipe.image_size,
        "data": run.sources[0].fingerprint,
        "tokenizer": folder_hash(run.path_of("tokenizer")),
    }


def work(run: Run) -> None:
    """Encode on the main process; whole shards of an interrupted run are kept."""
    if run.accelerator.is_main_process:
        assert run.recipe.cache is not None
        encode_source(
            run.tokenizer(),
            run.sources[0],
            run.recipe.image_size,
            run.folder / "latents",
            run.recipe.cache,
            run.accelerator.device,
            run.observer,
        )
