"""`davae prompts`: the captions of the training images as embeddings, once for each round of fine-tuning."""

from functools import partial
from typing import Any

from davae.caching.prompt_encoding import encode_prompts, load_text_parts
from davae.core.precision import DTYPES
from davae.data.prompt_cache import is_complete
from davae.run import build
from davae.run.checks import require_captions
from davae.run.execute import Stage
from davae.run.inputs import captions, settings
from davae.run.paths import RoundName
from davae.run.previews import prompts_of_previews
from davae.run.rounds import Round
from davae.run.run import Run


def depends_on(run: Run, name: RoundName) -> dict[str, Any]:
    """What the embeddings of a round depend on."""
    current = Round(run, name)
    return {
        "prompts": settings(run.recipe.prompts),
        "captions": captions(current),
        "preview": sorted(prompts_of_previews(current)),
        "encoders": build.prompt_key(run)["encoders"],
    }


def run(run: Run, name: RoundName) -> None:
    """Encode, each process its share; whole shards of an interrupted run are kept.

    Raises:
        DataError: no image has a caption.
    """
    config, current = run.recipe.prompts, Round(run, name)
    assert config is not None
    require_captions(current)
    encode_prompts(
        load_text_parts(run.pair, DTYPES[config.dtype]),
        dict(zip(current.source.ids, current.source.all_captions, strict=True)) | prompts_of_previews(current),
        run.folder.prompts(name),
        config,
        run.accelerator.device,
        run.observer,
        build.prompt_key(run)["encoders"],
        run.part,
    )


def _stage(name: str, section: str, round_name: RoundName) -> Stage:
    return Stage(
        name=name,
        verb="prompts",
        section=section,
        inputs=partial(depends_on, name=round_name),
        run=partial(run, name=round_name),
        output=lambda run: run.folder.prompts(round_name),
        stands=is_complete,
        portable=True,
    )


STAGE = _stage("prompts", "prompts", "finetune")
REALISM = _stage("realism-prompts", "realism", "realism")
