"""A recipe as one frozen, validated dataclass."""

import re
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from davae.caching.settings import CacheConfig, PromptsConfig
from davae.core.config import Config, PathOrName, Range, Seed
from davae.recipe.sections import (
    DataConfig,
    EvaluateConfig,
    FinetuneConfig,
    PretrainConfig,
    RealismConfig,
    SampleConfig,
)
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.judge_settings import JudgeConfig
from davae.train.objective import ReconstructionConfig, TokenizerConfig

GIVEN_AUTOENCODER = "pretrain.autoencoder"
REUSABLE = (GIVEN_AUTOENCODER, "tokenizer", "cache", "prompts", "finetune")
"""Sections that may be `{from: RUN}`: take what another run made. A given autoencoder is a folder of its own, a
pipeline, or a name on the hub."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """One whole run. It ends after the last section that is present."""

    name: str
    """Of the run's folder: letters, digits, '.', '-' and '_'."""
    data: DataConfig | None = None
    """What a recipe needs unless it only draws from a pair."""
    seed: Seed = 0
    """Of everything random in the run."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator where there is one."""
    pair: PathOrName = "embedded"
    """The pretrained pair: "embedded", a folder with a saved pipeline, or what `pretrain` makes. A folder or a hub
    name of nothing but an autoencoder does for training its upgrade."""
    image_size: Annotated[int, Range(0, 65_536)] = 0
    """Side of the upgraded images; 0 in a recipe that only pretrains."""
    pretrain: PretrainConfig | None = None
    """Makes the pair from scratch."""
    judge: JudgeConfig | None = None
    """Trains a judge of rendered solids, by which drawn ones are measured."""
    tokenizer: TokenizerConfig | None = None
    """Trains the upgraded autoencoder."""
    cache: CacheConfig | None = None
    """Encodes the training images once."""
    prompts: PromptsConfig | None = None
    """Encodes their captions once; of text-to-image runs."""
    finetune: FinetuneConfig | None = None
    """Trains the widened transformer."""
    realism: RealismConfig | None = None
    """A second round of fine-tuning on other images (S7 of the paper). What it leaves out is as in `finetune`."""
    sample: SampleConfig | None = None
    """Draws images."""
    evaluate: EvaluateConfig | None = None
    """Measures, and writes the report."""
    reuse: dict[str, PathOrName] = field(default_factory=dict)
    """Section -> folder of another run whose result it takes; written as `SECTION: {from: FOLDER}`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise ValueError(f"name is the run's folder: letters, digits, '.', '-' and '_'; got {self.name!r}")
        _check_chain(self)

    def has(self, section: str) -> bool:
        """Whether a section is present, or taken from another run."""
        return getattr(self, section) is not None or section in self.reuse

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML would hold them."""
        values = {key: value for key, value in asdict(self).items() if value is not None and key != "reuse"}
        for section, path in self.reuse.items():
            place, key = place_of(values, section)
            place[key] = {"from": path}
        return values


def place_of(values: dict[str, Any], section: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a section, and its key there; an empty one where there is none."""
    *parents, key = section.split(".")
    for parent in parents:
        inner = values.get(parent)
        values = inner if isinstance(inner, dict) else {}
    return values, key


def _check_chain(recipe: Recipe) -> None:
    chain = [
        *(("cache", "tokenizer"), ("finetune", "cache"), ("prompts", "cache")),
        *(("realism", "finetune"), ("realism", "cache"), ("evaluate", "tokenizer")),
    ]
    if recipe.has("tokenizer"):
        chain.append(("sample", "finetune"))  # a recipe that upgrades nothing draws from the pair as it is
    chain += [(section, "data") for section in ("pretrain", "judge", "tokenizer", "cache", "finetune")]
    for section, needed in chain:
        if recipe.has(section) and not recipe.has(needed):
            raise ValueError(f"section {section} needs section {needed}, which the recipe lacks")
    if not any(recipe.has(section) for section in ("pretrain", "judge", "tokenizer", "sample")):
        raise ValueError(
            "there is nothing to run; a recipe has at least one of pretrain, judge, tokenizer and sample"
        )
    if recipe.judge is not None and recipe.data is not None and recipe.data.kind != "solids":
        raise ValueError(f"section judge learns from rendered scenes, data.kind solids; got {recipe.data.kind}")
    if recipe.pretrain is not None:
        _check_pretrain(recipe, recipe.pretrain)
    if recipe.realism is not None:
        if recipe.realism.start is not None:
            raise ValueError("realism.start is nothing to set: it starts from finetune's result")
        for section in ("finetune", "cache", *(("prompts",) if recipe.has("prompts") else ())):
            if getattr(recipe, section) is None:
                raise ValueError(
                    f"section realism needs the settings of section {section}, which is taken from another run"
                )
        if recipe.finetune is not None and recipe.realism.lora != recipe.finetune.lora:
            raise ValueError("realism.lora is finetune's: it trains what finetune trained. Leave it out")
    stored: list[tuple[str, CacheConfig | None, DiffusionConfig | None]] = [
        ("finetune", recipe.cache, recipe.finetune),
        ("realism", recipe.cache, recipe.realism),
    ]
    if recipe.pretrain is not None:
        stored.append(("pretrain.transformer", recipe.pretrain.cache, recipe.pretrain.transformer))
    for section, cache, training in stored:
        if cache is not None and training is not None and training.flips and not cache.flips:
            raise ValueError(
                f"{section}.flips needs mirrored latents in the cache; set it to false, or cache.flips to true"
            )
    _check_pyramids(recipe)
    if recipe.has("tokenizer"):
        scale = recipe.tokenizer.scale if recipe.tokenizer is not None else 1
        if recipe.image_size < 1 or recipe.image_size % scale:
            raise ValueError(f"image_size must be a positive multiple of the scale {scale}; got {recipe.image_size}")
        if recipe.pretrain is not None and recipe.tokenizer is not None:
            expected = recipe.pretrain.image_size * scale
            if recipe.image_size != expected:
                raise ValueError(
                    f"image_size must be pretrain.image_size x scale = {expected}; got {recipe.image_size}"
                )


def _check_pyramids(recipe: Recipe) -> None:
    trainings: list[tuple[str, ReconstructionConfig | None, int]] = [
        ("tokenizer", recipe.tokenizer, recipe.image_size)
    ]
    if recipe.pretrain is not None:
        trainings.append(("pretrain.autoencoder", recipe.pretrain.autoencoder, recipe.pretrain.image_size))
    for section, config, size in trainings:
        if config is not None and config.pyramid is not None and size < 2**config.pyramid.levels:
            raise ValueError(
                f"{section}.pyramid.levels halves an image that often: {size} px allow {size.bit_length() - 1} at "
                f"most; got {config.pyramid.levels}"
            )


def _check_pretrain(recipe: Recipe, pretrain: PretrainConfig) -> None:
    if (pretrain.autoencoder is None) == (GIVEN_AUTOENCODER not in recipe.reuse):
        raise ValueError(
            f"{GIVEN_AUTOENCODER} must hold the settings of its training, or {{from: FOLDER}} for one that is there"
        )
    if pretrain.transformer is not None:
        return
    if pretrain.autoencoder is None:
        raise ValueError(f"{GIVEN_AUTOENCODER} is given, and there is no transformer to train; add it")
    for section in ("tokenizer", "sample"):
        if recipe.has(section):
            raise ValueError(
                f"section {section} needs a pair, which pretrain without a transformer does not make; "
                "add pretrain.transformer, or give the autoencoder to another recipe as its pair"
            )
