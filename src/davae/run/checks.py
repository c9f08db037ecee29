"""What a later stage would refuse, refused before the first; and what people should know before they wait."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from davae.backbones.features import require_features
from davae.data.errors import DataError
from davae.data.image_source import ImageSource
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.spaces import inception, solids
from davae.models.adapter import adapt
from davae.models.weights import INCEPTION, find
from davae.recipe import Recipe, load_recipe
from davae.run import build, geometry
from davae.run.arguments import check_arguments
from davae.run.origins import Origins
from davae.run.paths import RunFolder
from davae.run.rounds import Round, rounds_of
from davae.run.run import Run
from davae.sampling.settings import check_guided_channels
from davae.train.feed import Share
from davae.train.settings import LoopConfig


def check(run: Run) -> None:
    """Refuse what needs no data to be refused.

    Raises:
        ValueError: a batch cannot be shared by the processes, or the recipe is for another kind of pair.
        FileNotFoundError: there is no file of prompts to draw.
    """
    recipe, pretrain = run.recipe, run.recipe.pretrain
    trainings: list[LoopConfig | None] = [recipe.judge, recipe.tokenizer, recipe.finetune, recipe.realism]
    if pretrain is not None:
        check_arguments(pretrain)
        trainings += [pretrain.autoencoder, pretrain.transformer]
    for config in trainings:
        if config is not None:
            Share(config.batch_size, config.accumulation, run.accelerator.num_processes)
    prompts = None if recipe.sample is None else recipe.sample.prompts
    if prompts is not None and not Path(prompts).is_file():
        raise FileNotFoundError(f"There is no file {prompts}, which sample.prompts names.")
    if recipe.evaluate is not None:
        _check_weights(recipe.evaluate.metrics)
        _check_solids(recipe)
    if pretrain is None and recipe.finetune is not None:
        _check_kind(run)
    if pretrain is None and recipe.tokenizer is not None and recipe.tokenizer.generative_alignment is not None:
        require_features(run.pair.backbone, run.pair.transformer_config, recipe.tokenizer.generative_alignment.block)


def check_captions(run: Run) -> None:
    """Refuse, before anything is trained, prompts that nobody wrote; count the images without any.

    Raises:
        DataError: no training image has a caption, or no test image where samples are drawn by theirs.
    """
    recipe = run.recipe
    if recipe.prompts is None or recipe.data is None:
        return
    for current in rounds_of(run):
        without, total = require_captions(current), len(current.source)
        if without:
            counted = f"{without:,} of {total:,} images of {_section(current)}"
            run.observer.say(f"{counted} have no caption and train as the empty prompt.")
    if recipe.sample is not None and recipe.sample.prompts is None and not any(run.data.test.captions):
        raise DataError(
            f"Cannot draw samples of {recipe.name} by the captions of its test images: "
            f"{_no_caption('data', run.data.test)} Or set sample.prompts to a file of prompts."
        )


def require_captions(current: Round) -> int:
    """Refuse images of a round of which none has a caption; how many have none.

    Raises:
        DataError: a transformer that is to follow prompts learns nothing from none.
    """
    source = current.source
    without = sum(not caption for caption in source.captions)
    if without == len(source):
        raise DataError(f"Cannot train on prompts: {_no_caption(_section(current), source)}")
    return without


def _section(current: Round) -> str:
    return "realism.data" if current.is_second else "data"


def _no_caption(section: str, source: ImageSource) -> str:
    return (
        f"got {len(source):,} images of {section}, none with a caption (for example {source.ids[0]}); allowed are "
        f"sets in which some have one. Write captions: NAME.txt beside NAME.jpg or metadata.jsonl in a folder of "
        f"images, KEY.txt or KEY.json in tar shards."
    )


def _check_weights(metrics: Sequence[str]) -> None:
    """Refuse metrics whose network is not here, before hours of training."""
    if any(metric.space == inception.NAME for metric in feature_metrics(metrics)) and not find(INCEPTION):
        raise FileNotFoundError(
            f"evaluate.metrics needs the {INCEPTION.title}, which is in no cache of this machine. Fetch it once by "
            f"'davae evaluate --images FOLDER --metrics is --download', or leave evaluate.metrics empty."
        )


def _check_solids(recipe: Recipe) -> None:
    """Refuse to ask what solids are shown of a set that says nothing of solids."""
    if recipe.evaluate is None or recipe.data is None or recipe.data.kind == "solids":
        return
    if asking := [m.name for m in feature_metrics(recipe.evaluate.metrics) if m.space == solids.NAME]:
        raise ValueError(
            f"{asking[0]} is of rendered scenes, data.kind solids; got {recipe.data.kind}. Leave it out of "
            f"evaluate.metrics; 'davae evaluate --images' takes any images."
        )


def check_base_size(size: int, autoencoder: Any) -> None:
    """Refuse an image size that the base autoencoder of section pretrain cannot take.

    Raises:
        ValueError: it is no multiple of its compression.
    """
    factor = adapt(autoencoder).compression
    if size % factor:
        raise ValueError(
            f"pretrain.image_size must be a multiple of the autoencoder's compression {factor}; got {size}"
        )


def check_pair(run: Run, num_classes: int) -> None:
    """Refuse, before anything is trained, what the pair's transformer has no positions, classes or channels for.

    Raises:
        ValueError: the image size, the number of classes or of guided channels does not fit the pair, or it cannot
            draw a detail that lags.
    """
    if run.recipe.finetune is None:
        return
    _check_kind(run)
    backbone, config, size = run.pair.backbone, run.pair.transformer_config, run.recipe.image_size
    base, upgraded = geometry.base(run).compression, geometry.upgraded(run).compression
    scale, side = upgraded // base, backbone.token_side(config)
    unit = upgraded * side
    if size % unit:
        raise ValueError(
            f"image_size does not fit the pair; got {size}, allowed are multiples of {unit} "
            f"(compression {base} x scale {scale} x patch {side}). Use {max(size // unit, 1) * unit}."
        )
    expected = upgraded * config["sample_size"]
    if backbone.default_size == "fixed" and size != expected:
        raise ValueError(
            f"image_size does not fit the pair; got {size}, allowed {expected} (the pair draws {expected // scale} "
            f"px, the tokenizer's scale is {scale}). Set image_size, or take another pair."
        )
    if run.recipe.sample is not None:
        check_guided_channels(run.recipe.sample.guidance_channels, geometry.upgraded(run).layout.channels)
    for current in rounds_of(run):
        if current.config.detail_lag:
            build.scheduler(current, geometry.upgraded(run).layout)
    known = config.get("num_classes")
    if known is not None and num_classes > known:
        raise ValueError(
            f"The data have more classes than the pair; got {num_classes}, allowed {known}. "
            f"Merge classes, or take a pair that was trained on as many."
        )


def warn_of_judged_training_images(run: Run) -> None:
    """Say it where a run is judged on images that another one, whose weights it takes over, was trained on."""
    if run.recipe.data is None or run.recipe.evaluate is None:
        return
    for source, count in judged_training_images(run).items():
        run.observer.say(
            f"Warning: {count:,} of the {len(run.data.test):,} test images were trained on by {source}, whose "
            f"weights this run takes over. Its results on them say nothing; use the data and test_count of that run, "
            f"or a set with a val part."
        )


def judged_training_images(run: Run) -> dict[str, int]:
    """Run whose weights are taken over -> how many of this run's test images it was trained on; none left out."""
    found = {}
    for source in _weights_taken(run.recipe):
        earlier = _earlier(Path(source))
        if earlier is None or earlier.recipe.data is None or _place(earlier.recipe) != _place(run.recipe):
            continue
        count = len(set(run.data.test.ids).intersection(earlier.data.finetune.ids))
        if count:
            found[source] = count
    return found


def _earlier(source: Path) -> Run | None:
    """The run in a folder, or the one whose second round lies there; None where there is no recipe."""
    for folder in (source, source.parent):
        recipe = RunFolder(folder).recipe
        if recipe.is_file():
            return Run(replace(load_recipe(recipe), name=folder.resolve().name), folder.resolve().parent)
    return None


def _weights_taken(recipe: Recipe) -> list[str]:
    """Runs whose weights a recipe takes over."""
    sources = [recipe.reuse[section] for section in ("tokenizer", "finetune") if section in recipe.reuse]
    if recipe.finetune is not None and recipe.finetune.start is not None:
        sources.append(recipe.finetune.start)
    return list(dict.fromkeys(sources))


def _place(recipe: Recipe) -> str:
    """What tells data sets apart."""
    assert recipe.data is not None
    return recipe.data.kind if recipe.data.path is None else str(Path(recipe.data.path).resolve())


def _check_kind(origins: Origins) -> None:
    pair, has_prompts = origins.pair, origins.recipe.has("prompts")
    if pair.is_text != has_prompts:
        raise ValueError(
            f"The pair {pair.source} draws from {'prompts' if pair.is_text else 'class labels'}, and "
            f"the recipe has {'no' if pair.is_text else 'a'} section prompts. "
            f"{'Add' if pair.is_text else 'Remove'} it, or take another pair."
        )
    sample = origins.recipe.sample
    if pair.is_text and sample is not None and sample.guidance_channels is not None:
        raise ValueError(
            f"sample.guidance_channels is for pairs that draw classes; got {sample.guidance_channels}, and "
            f"{pair.source} draws from prompts. Leave it out: all channels are guided."
        )
