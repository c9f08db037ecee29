"""What results depend on, as JSON values: a result stands while these are the same.

Of a set of images, a result depends on no more than it is made of:

- ids and contents (`fingerprint`): autoencoders, latents, what is measured on test images;
- these and the labels (`labelled_fingerprint`): transformers that are trained on classes;
- captions alone: prompts, and samples of the captions of test images.

A transformer that was trained on captions stands when they are corrected: that is said and nothing is thrown away.
"""

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from davae.core.config import Config, Place
from davae.core.files import file_hash, folder_hash, text_hash
from davae.data.prompt_cache import PromptSet
from davae.models.loading import autoencoder_folder
from davae.recipe import GIVEN_AUTOENCODER
from davae.run import pipelines
from davae.run.build import pretrain
from davae.run.rounds import Round
from davae.run.run import Run
from davae.train.settings import LoopConfig


def settings(config: Config | None) -> dict[str, Any]:
    """A section as JSON values, without what changes no result. Of a file counts what is in it, wherever it lies."""
    assert config is not None
    values = json.loads(json.dumps(asdict(config.with_places(_content))))  # type: ignore[call-overload]
    ignored = config.BOOKKEEPING if isinstance(config, LoopConfig) else ()
    return {key: value for key, value in values.items() if key not in ignored}


def _content(place: Place, text: str) -> str:
    path = Path(text)
    if path.is_dir():
        return folder_hash(path)
    return file_hash(path) if path.is_file() else text


def base_autoencoder(run: Run, data: str | None = None) -> dict[str, Any]:
    """Of the base autoencoder that section pretrain trains.

    Args:
        run: with that section.
        data: stands for its images; None takes their fingerprint.
    """
    section = pretrain(run)
    return {
        "autoencoder": settings(section.autoencoder),
        "image_size": section.image_size,
        "data": data or run.data.train.fingerprint,
        "seed": run.recipe.seed,
    }


def base_latents(run: Run, data: str | None = None) -> dict[str, Any]:
    """Of its latents, or of those of the autoencoder that it is given; see `base_autoencoder`."""
    section, given = pretrain(run), run.recipe.reuse.get(GIVEN_AUTOENCODER)
    made: dict[str, Any] = {"cache": settings(section.cache)}
    if given is None:
        return made | {"autoencoder": base_autoencoder(run, data)}
    images = {"image_size": section.image_size, "data": data or run.data.train.fingerprint}
    return made | {"autoencoder": folder_hash(autoencoder_folder(given)), **images}


@lru_cache(maxsize=4)  # several stages ask for it
def captions(current: Round) -> str:
    """Hash of the captions of the images of a round, by id."""
    source = current.source
    return PromptSet.of(dict(zip(source.ids, source.all_captions, strict=True))).fingerprint


def pipeline(run: Run) -> dict[str, Any]:
    """Of the pipeline that section sample draws with, and of the prompts that it draws."""
    result: dict[str, Any] = {}
    if not run.recipe.has("finetune"):
        result["pipeline"] = folder_hash(run.pair.folder(run.pair.parts))
    else:
        result["pipeline"] = folder_hash(run.finetuned())
        if run.pair.is_text:
            result["tokenizer"] = folder_hash(run.result("tokenizer"))
            result["pair"] = transformer(run)
    if run.pair.is_text and run.recipe.sample is not None:
        result["prompts_drawn"] = text_hash("\n".join(pipelines.prompts_to_draw(run)))
    return result


def samples(run: Run) -> dict[str, Any]:
    """Of the drawn images."""
    return {"sample": settings(run.recipe.sample), **pipeline(run)}


def transformer(run: Run) -> str:
    """Hash of the pretrained transformer."""
    return folder_hash(run.pair.folder(["transformer"]) / "transformer")
