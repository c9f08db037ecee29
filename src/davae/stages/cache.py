"""`davae cache`: the upgraded latents of the training images, encoded once for each round of fine-tuning."""

from functools import partial
from typing import Any

from davae.caching.latent_encoding import encode_images
from davae.core.files import folder_hash
from davae.data.latent_cache import is_complete
from davae.run import build
from davae.run.execute import Stage
from davae.run.inputs import settings
from davae.run.paths import RoundName
from davae.run.rounds import Round
from davae.run.run import Run


def depends_on(run: Run, name: RoundName) -> dict[str, Any]:
    """What the cache of a round depends on."""
    return {
        "cache": settings(run.recipe.cache),
        "image_size": run.recipe.image_size,
        "data": Round(run, name).source.fingerprint,
        "tokenizer": folder_hash(run.result("tokenizer")),
    }


def run(run: Run, name: RoundName) -> None:
    """Encode, each process its share; whole shards of an interrupted run are kept."""
    config = run.recipe.cache
    assert config is not None
    encode_images(
        build.trained_tokenizer(run),
        Round(run, name).source,
        run.recipe.image_size,
        run.folder.latents(name),
        config,
        run.accelerator.device,
        run.observer,
        run.data.buckets,
        run.part,
    )


def _stage(name: str, section: str, round_name: RoundName) -> Stage:
    return Stage(
        name=name,
        verb="cache",
        section=section,
        inputs=partial(depends_on, name=round_name),
        run=partial(run, name=round_name),
        output=lambda run: run.folder.latents(round_name),
        stands=is_complete,
        portable=True,
    )


STAGE = _stage("cache", "cache", "finetune")
REALISM = _stage("realism-cache", "realism", "realism")
