"""`davae prompts`: the captions of the training images as embeddings, once."""

from typing import Any

from davae.data.cache_files import Part
from davae.data.source import DataError
from davae.stages.embed import encode_prompts, load_text_parts, text_encoders_hash
from davae.stages.encode import DTYPES
from davae.stages.phase import Phase, PhaseName
from davae.stages.preview import preview_id
from davae.stages.run import Run, settings


def expected(run: Run) -> dict[str, Any]:
    """What a prompt cache must have been made with to serve this run."""
    own = run.recipe.prompts
    made_with = {"encoders": text_encoders_hash(run.pair.source, run.pair.backbone.text_parts)}
    return made_with if own is None else {**made_with, "max_length": own.max_length}


def inputs(run: Run, phase: PhaseName = "finetune") -> dict[str, Any]:
    """What the embeddings depend on."""
    one = Phase(run, phase)
    return {
        "prompts": settings(run.recipe.prompts),
        "data": one.source.fingerprint,
        "preview": sorted(_preview(one)),
        "encoders": expected(run)["encoders"],
    }


def work(run: Run, phase: PhaseName = "finetune") -> None:
    """Encode, each process its share; whole shards of an interrupted run are kept.

    Raises:
        DataError: no image has a caption.
    """
    config, one, accelerator = run.recipe.prompts, Phase(run, phase), run.accelerator
    assert config is not None
    captions = _captions(one) | _preview(one)
    dtype = DTYPES[config.dtype]
    encode_prompts(
        load_text_parts(run.pair.source, dtype),
        captions,
        one.folder / "prompts",
        max_length=config.max_length,
        dtype=dtype,
        batch_size=config.batch_size,
        shard_size=config.shard_size,
        device=accelerator.device,
        observer=run.observer,
        encoders=expected(run)["encoders"],
        part=Part(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
    )


def _captions(phase: Phase) -> dict[str, str]:
    """The captions of the training images by id. A transformer that is to follow prompts learns nothing from none."""
    source = phase.source
    if not any(caption.strip() for caption in source.captions):
        section = "realism.data" if phase.is_second else "data"
        raise DataError(
            f"Cannot make a prompt cache of {section}: got {len(source)} images, none with a caption (for example "
            f"{source.ids[0]}); allowed are sets in which some have one. Write captions: NAME.txt beside NAME.jpg or "
            f"metadata.jsonl in a folder of images, KEY.txt or KEY.json in tar shards."
        )
    return dict(zip(source.ids, source.captions, strict=True))


def _preview(phase: Phase) -> dict[str, str]:
    """Prompts that are drawn during training, by their ids in the cache."""
    recipe = phase.run.recipe
    section = recipe.realism if phase.is_second else recipe.finetune
    preview = None if section is None else section.preview
    return {} if preview is None else {preview_id(prompt): prompt for prompt in preview.prompts}
