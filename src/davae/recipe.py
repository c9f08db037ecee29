"""A recipe: one YAML file, one whole run, validated before anything is computed.

This is the only file that imports pydantic. Settings live beside their owners; here they are only put together.
"""

import copy
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_type_hints

import diffusers
import yaml
from pydantic import TypeAdapter, ValidationError

from davae.core.config import Config
from davae.models.lightningdit import LightningDiT
from davae.train.diffusion import DiffusionConfig
from davae.train.objective import AutoencoderConfig, TokenizerConfig

REUSABLE = ("tokenizer", "cache", "prompts", "finetune")
"""Sections that may be `{from: RUN}`: take what another run made."""


class RecipeError(ValueError):
    """A recipe that cannot be run, with every problem listed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 1e-3 is one, although it has no dot."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where images come from."""

    kind: Literal["auto", "solids", "folder", "shards"] = "auto"
    """auto tells folders of images from tar shards by looking."""
    path: str | None = None
    """Folder or shard pattern. A folder with train and val parts (sub-folders, or train-*.tar and val-*.tar) is
    split that way; of any other, `test_count` images are held out."""
    count: int = 20_000
    """Rendered training scenes (solids only)."""
    test_count: int = 512
    """Images for evaluation, never trained on."""
    seed: int = 0
    """Of the rendered scenes (solids only)."""
    workers: int = 1
    """Processes that prepare batches."""

    def __post_init__(self) -> None:
        if self.kind in ("folder", "shards") and self.path is None:
            raise ValueError(f"data.kind {self.kind} needs data.path")
        if self.kind == "auto" and self.path is None:
            raise ValueError("data needs a path, or kind: solids")
        _require_positive(self, "count", "test_count")


@dataclass(frozen=True, kw_only=True)
class BaseAutoencoderConfig(AutoencoderConfig):
    """A base autoencoder trained from scratch."""

    model: Literal["AutoencoderDC", "AutoencoderKL"]
    model_config: dict[str, Any]
    """Arguments of the diffusers class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_arguments(getattr(diffusers, self.model), self.model_config)


@dataclass(frozen=True, kw_only=True)
class BaseTransformerConfig(DiffusionConfig):
    """A LightningDiT trained from scratch on the base autoencoder's latents."""

    model_config: dict[str, Any]
    """Arguments of `LightningDiT`, without channels, grid and classes, which follow from autoencoder and data."""
    time_shift: float = 0.3
    """Native timestep shift of the saved scheduler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_arguments(LightningDiT, self.model_config, derived=("in_channels", "sample_size", "num_classes"))


@dataclass(frozen=True, kw_only=True)
class CacheConfig(Config):
    """How latents are stored."""

    flips: bool = True
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    batch_size: int = 32
    shard_size: int = 4096
    precision: Literal["fp32", "bf16"] = "fp32"
    max_aspect: float = 1.0
    """Longest side to shortest: 1 crops every image to a square; 2 keeps images between 1:2 and 2:1 in their shape,
    in buckets of sizes of about the same area."""

    def __post_init__(self) -> None:
        _require_positive(self, "batch_size", "shard_size")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1 (squares); got {self.max_aspect}")


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(Config):
    """How captions become embeddings, once and for all."""

    max_length: int = 256
    """Tokens of the long text encoder (T5); drawing takes the same number. CLIP has its own limit."""
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    """Of the text encoders and of what is stored."""
    batch_size: int = 32
    shard_size: int = 256

    def __post_init__(self) -> None:
        _require_positive(self, "max_length", "batch_size", "shard_size")


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(Config):
    """Images of fixed seeds, drawn now and then during a training with its averaged weights."""

    every: int = 1000
    """Steps between two of them."""
    prompts: tuple[str, ...] = ()
    """What is drawn (text to image)."""
    count: int = 8
    """How many classes are drawn (class-conditional)."""
    steps: int = 28
    guidance_scale: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require_positive(self, "every", "count", "steps")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DiffusionConfig):
    """Fine-tuning of the pair's widened transformer."""

    start: str | None = None
    """Folder of a finished run to start from (its weights, not its optimizer); null: the pair itself, widened."""
    scheduler_shift: float | None = None
    """Shift of the scheduler that the upgraded pair is drawn with; null keeps the pair's."""
    preview: PreviewConfig | None = None

    BOOKKEEPING: ClassVar[tuple[str, ...]] = (*DiffusionConfig.BOOKKEEPING, "preview")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheduler_shift is not None and self.scheduler_shift <= 0:
            raise ValueError(f"scheduler_shift must be positive; got {self.scheduler_shift}")


@dataclass(frozen=True, kw_only=True)
class RealismConfig(FinetuneConfig):
    """A second stage of fine-tuning on other images, for example drawn ones (S7 of the paper)."""

    data: DataConfig
    detail_warmup_steps: int = 0
    """The detail is learned by now."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Makes a base pair from scratch, or its autoencoder alone."""

    image_size: int
    autoencoder: BaseAutoencoderConfig
    cache: CacheConfig = field(default_factory=CacheConfig)
    transformer: BaseTransformerConfig | None = None
    """null ends the run after the autoencoder."""
    save_dtype: Literal["float32", "float16", "bfloat16", "float8"] = "float32"
    """Of the saved pair's weights. float8 (e4m3) is for the matrices of the transformer's blocks, the rest is then
    float16. Loading gives the dtype that is asked for, float32 by default. An autoencoder alone stays float32."""

    def __post_init__(self) -> None:
        if self.transformer is None and self.save_dtype != "float32":
            raise ValueError(
                f"save_dtype is of a saved pair; got {self.save_dtype} without a transformer. Leave it out: an "
                f"autoencoder alone is saved in float32"
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """Drawing images; `evaluate` judges the ones that were drawn."""

    count: int = 64
    """FID is commonly of 50,000."""
    steps: int = 50
    """Euler steps; a grid of 250 points has 249."""
    batch_size: int = 64
    """Images at once, which share a shard of samples/."""
    prompts: str | None = None
    """File of prompts (text to image); null draws the captions of the test images."""
    labels: Literal["balanced", "random"] = "balanced"
    """Class of image i: i modulo the number of classes, or drawn, as the reference does."""
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Native times (0 = noise, 1 = data) between which guidance is on."""
    guidance_channels: int | None = None
    """Guide the first channels only, as upstream LightningDiT does with 3; null guides all of them."""
    seed: int = 0
    """Image i is drawn from seed + i."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the transformer. bf16 is autocast; the state between steps and the decoder stay fp32."""
    png: bool = True
    """Write an image a file, 000000.png and on."""
    npz: bool = False
    """Write all images to images.npz, which guided-diffusion's evaluator reads: count x side x side x 3 bytes."""

    def __post_init__(self) -> None:
        _require_positive(self, "count", "steps", "batch_size")
        if self.guidance_channels is not None:
            _require_positive(self, "guidance_channels")
        start, end = self.guidance_interval
        if not 0 <= start <= end <= 1:
            raise ValueError(f"guidance_interval must be two times in order, in [0, 1]; got [{start}, {end}]")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """What is measured."""

    reconstructions: int = 256
    """Held-out images for PSNR, SSIM and decoder sensitivity."""
    speed_batch: int = 16
    """Images a batch in the speed measurement; 0 leaves it out."""
    batch_size: int = 64
    claims: bool = False
    """Whether the run is held to the demo's claims."""

    def __post_init__(self) -> None:
        _require_positive(self, "reconstructions", "batch_size")
        if self.speed_batch < 0:
            raise ValueError(f"speed_batch must be 0 (off) or more; got {self.speed_batch}")


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """One whole run. It ends after the last section that is present."""

    name: str
    data: DataConfig
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    pair: str = "embedded"
    """The pretrained pair: "embedded", a folder with a saved pipeline, or what `pretrain` makes. A folder or a hub
    name of nothing but an autoencoder does for training its upgrade."""
    image_size: int = 0
    """Side of the upgraded images; 0 in a recipe that only pretrains."""
    pretrain: PretrainConfig | None = None
    tokenizer: TokenizerConfig | None = None
    cache: CacheConfig | None = None
    prompts: PromptsConfig | None = None
    """Of text-to-image runs."""
    finetune: FinetuneConfig | None = None
    realism: RealismConfig | None = None
    sample: SampleConfig | None = None
    evaluate: EvaluateConfig | None = None
    reuse: dict[str, str] = field(default_factory=dict)
    """Section -> folder of another run whose result it takes; written as `SECTION: {from: FOLDER}`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise ValueError(f"name is the run's folder: letters, digits, '.', '-' and '_'; got {self.name!r}")
        _check_chain(self)

    def has(self, section: str) -> bool:
        """Whether a section is present, or taken from another run."""
        return getattr(self, section) is not None or section in self.reuse

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML would hold them."""
        values = {key: value for key, value in asdict(self).items() if value is not None and key != "reuse"}
        return values | {section: {"from": path} for section, path in self.reuse.items()}


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")


def _require_arguments(model: Any, given: Mapping[str, Any], derived: Sequence[str] = ()) -> None:
    known = [name for name in inspect.signature(model).parameters if name not in derived]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known arguments: {', '.join(known)}"
            raise ValueError(f"model_config.{key} is nothing to set of {model.__name__}; {hint}")


def _check_chain(recipe: Recipe) -> None:
    chain = [
        *(("cache", "tokenizer"), ("finetune", "cache"), ("prompts", "cache")),
        *(("realism", "finetune"), ("realism", "cache"), ("sample", "finetune"), ("evaluate", "tokenizer")),
    ]
    for section, needed in chain:
        if recipe.has(section) and not recipe.has(needed):
            raise ValueError(f"section {section} needs section {needed}, which the recipe lacks")
    if recipe.pretrain is not None and recipe.pretrain.transformer is None and recipe.has("tokenizer"):
        raise ValueError(
            "section tokenizer needs a pair, which pretrain without a transformer does not make; "
            "add pretrain.transformer, or give the autoencoder to another recipe as its pair"
        )
    if recipe.realism is not None:
        for name, why in (("start", "it starts from finetune's result"), ("lora", "it trains what finetune trained")):
            if getattr(recipe.realism, name) is not None:
                raise ValueError(f"realism.{name} is nothing to set: {why}")
        for section in ("finetune", "cache"):
            if getattr(recipe, section) is None:
                raise ValueError(
                    f"section realism needs the settings of section {section}, which is taken from another run"
                )
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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, merge `a.b=c` overrides into the YAML, and validate.

    Raises:
        RecipeError: the file cannot be read or the recipe is wrong; every problem is listed.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"There is no recipe {path}. Give the path of a YAML file.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold a mapping of sections; got {type(values).__name__}.")
    return parse_recipe(merge_overrides(values, overrides), str(path))


def merge_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=c` strings; c is read as YAML. The given mapping is left as it is."""
    merged = copy.deepcopy(dict(values))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise RecipeError(f"--set takes KEY=VALUE, for example finetune.steps=2000; got {override!r}.")
        *parents, last = key.split(".")
        place = merged
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise RecipeError(f"--set {key}: {parent!r} is not a section.")
        try:
            place[last] = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {key}: {text!r} is not valid YAML: {error}") from error
    return merged


def parse_recipe(values: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Validate a mapping."""
    values = dict(values)
    reuse = {}
    for section in REUSABLE:
        given = values.get(section)
        if isinstance(given, dict) and "from" in given:
            if len(given) > 1:
                raise RecipeError(
                    f"{name}: section {section} has both 'from' and its own settings; keep one of them."
                )
            reuse[section] = str(given["from"])
            del values[section]
    try:
        return TypeAdapter(Recipe).validate_python({**values, **({"reuse": reuse} if reuse else {})})
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise RecipeError(f"{name} is not a valid recipe:\n{problems}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(_plain(recipe.as_dict()), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        *parents, key = problem["loc"]
        known = _known_keys(parents)
        close = difflib.get_close_matches(str(key), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, (dict, list)) or "ArgsKwargs" in type(given).__name__ else f" (got {given!r})"
    return f"{where or 'recipe'}: {message}{shown}"


def _known_keys(parents: Sequence[Any]) -> list[str]:
    owner: Any = Recipe
    for parent in parents:
        hint = get_type_hints(owner).get(str(parent))
        options = (hint, *get_args(hint))  # of X | None and of tuple[X, ...] as well
        owner = next((option for option in options if is_dataclass(option)), owner)
    return [one.name for one in fields(owner) if one.name != "reuse"]
