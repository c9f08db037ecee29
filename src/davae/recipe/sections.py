"""The sections of a recipe. Settings of trainings live beside their owners; here they are put together."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import diffusers

from davae.core.config import Config
from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT
from davae.train.diffusion import DiffusionConfig
from davae.train.objective import AutoencoderConfig


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

    size: Literal["B", "L", "XL", "1p0B", "1p6B"] | None = None
    """A published geometry: width, depth and heads."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `LightningDiT`, which come before those of `size`; without channels, grid and classes,
    which follow from autoencoder and data."""
    time_shift: float = 0.3
    """Native timestep shift of the saved scheduler."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_arguments(LightningDiT, self.model_config, derived=("in_channels", "sample_size", "num_classes"))

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `LightningDiT` that the recipe decides."""
        return {**(LIGHTNINGDIT_SIZES[self.size] if self.size is not None else {}), **self.model_config}


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
    """Folder of a finished run to start from (its weights, not its optimizer), or of its realism/; null: the pair
    itself, widened."""
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
    """A second stage of fine-tuning on other images, for example drawn ones (S7 of the paper).

    What it does not say is as in `finetune`.
    """

    data: DataConfig
    detail_warmup_steps: int = 0
    """The detail is learned by now."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Makes a base pair from scratch, or its autoencoder alone."""

    image_size: int
    autoencoder: BaseAutoencoderConfig | None = None
    """Its training; or `{from: FOLDER}`: one that is there, with the statistics of its latents in its config."""
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
