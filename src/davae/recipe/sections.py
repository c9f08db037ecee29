"""The sections of a recipe. Settings of trainings live beside their owners; here they are put together."""

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from davae.caching.settings import CacheConfig
from davae.core.config import Amount, Config, Count, FilePath, Positive, Range, Seed, Side, Whole
from davae.sampling.settings import Labels, SamplerSettings
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.objective import AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Where images come from."""

    kind: Literal["auto", "solids", "folder", "shards"] = "auto"
    """auto tells folders of images from tar shards by looking."""
    path: FilePath | None = None
    """Folder or shard pattern. A folder with parts of its own (sub-folders train and val, validation or test in any
    case, or shards of such names) is split that way; of any other, `test_count` images are held out."""
    count: Count = 20_000
    """Rendered training scenes (solids only)."""
    test_count: Count | None = None
    """Images for evaluation, never trained on: those with the smallest hashes of their ids, at any image size. null
    takes a tenth of the set, 512 at most."""
    test_share: Annotated[float, Range(0, 1, above=True, below=True)] | None = None
    """Hold out this share of the images in place of test_count; then an image keeps its part as the set changes."""
    seed: Seed = 0
    """Of the rendered scenes (solids only)."""
    workers: Annotated[int, Range(0, 1024)] = 1
    """Processes that prepare batches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind in ("folder", "shards") and self.path is None:
            raise ValueError(f"data.kind {self.kind} needs data.path")
        if self.kind == "auto" and self.path is None:
            raise ValueError("data needs a path, or kind: solids")


@dataclass(frozen=True, kw_only=True)
class BaseAutoencoderConfig(AutoencoderConfig):
    """A base autoencoder trained from scratch."""

    model: Literal["AutoencoderDC", "AutoencoderKL"]
    """Its diffusers class."""
    model_config: dict[str, Any]
    """Arguments of the diffusers class."""


@dataclass(frozen=True, kw_only=True)
class BaseTransformerConfig(DiffusionConfig):
    """A LightningDiT trained from scratch on the base autoencoder's latents."""

    size: Literal["B", "L", "XL", "1p0B", "1p6B"] | None = None
    """A published geometry: width, depth and heads."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `LightningDiT`, which come before those of `size`; without channels, grid and classes,
    which follow from autoencoder and data."""
    time_shift: Positive = 0.3
    """Native timestep shift of the saved scheduler."""

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = (
        *("detail_warmup_steps", "detail_weight", "cosine_masked", "detail_lag", "init", "lora"),
    )


@dataclass(frozen=True, kw_only=True)
class BaseCacheConfig(CacheConfig):
    """How latents of the base autoencoder are stored, those of squares."""

    WITHOUT_EFFECT: ClassVar[tuple[str, ...]] = ("max_aspect",)


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(Config):
    """Images of fixed seeds, drawn now and then during a training with its averaged weights."""

    every: Count = 1000
    """Steps between two of them."""
    prompts: tuple[str, ...] = ()
    """What is drawn (text to image)."""
    count: Count = 8
    """How many classes are drawn (class-conditional)."""
    steps: Count = 28
    """Of the sampler."""
    guidance_scale: Amount = 4.0
    """Classifier-free guidance; 1 is off."""
    seed: Seed = 0
    """Image i is drawn from seed + i."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(DiffusionConfig):
    """Fine-tuning of the pair's widened transformer."""

    start: FilePath | None = None
    """Folder of a finished run to start from (its weights, not its optimizer), or of its realism/; null: the pair
    itself, widened."""
    scheduler_shift: Positive | None = None
    """Shift of the scheduler that the upgraded pair is drawn with; null keeps the pair's."""
    preview: PreviewConfig | None = None
    """Images that are drawn on the way."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = (*DiffusionConfig.BOOKKEEPING, "preview", "start")
    """What `start` names counts by its weights, not by its name."""


@dataclass(frozen=True, kw_only=True)
class RealismConfig(FinetuneConfig):
    """A second stage of fine-tuning on other images, for example drawn ones (S7 of the paper).

    What it does not say is as in `finetune`.
    """

    data: DataConfig
    """Its images."""
    detail_warmup_steps: Whole = 0
    """The detail is learned by now."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(Config):
    """Makes a base pair from scratch, or its autoencoder alone."""

    image_size: Side
    """Side of the base images, pixels."""
    autoencoder: BaseAutoencoderConfig | None = None
    """Its training; or `{from: FOLDER}`: one that is there, with the statistics of its latents in its config."""
    cache: BaseCacheConfig = field(default_factory=BaseCacheConfig)
    """How the base latents are stored."""
    transformer: BaseTransformerConfig | None = None
    """null ends the run after the autoencoder."""
    save_dtype: Literal["float32", "float16", "bfloat16", "float8"] = "float32"
    """Of the saved pair's weights. float8 (e4m3) is for the matrices of the transformer's blocks, the rest is then
    float16. Loading gives the dtype that is asked for, float32 by default. An autoencoder alone stays float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformer is None and self.save_dtype != "float32":
            raise ValueError(
                f"save_dtype is of a saved pair; got {self.save_dtype} without a transformer. Leave it out: an "
                f"autoencoder alone is saved in float32"
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerSettings):
    """Drawing images; `evaluate` judges the ones that were drawn."""

    count: Count = 64
    """FID is commonly of 50,000."""
    batch_size: Count = 64
    """Images at once, which share a shard of samples/."""
    prompts: FilePath | None = None
    """File of prompts (text to image); null draws the captions of the test images."""
    labels: Labels = "balanced"
    """Class of image i: i modulo the number of classes, or drawn, as the reference does."""
    png: bool = True
    """Write an image a file, 000000.png and on."""
    npz: bool = False
    """Write all images to images.npz, which guided-diffusion's evaluator reads: count x side x side x 3 bytes."""


FEATURE_METRICS = (
    *("fid", "sfid", "is", "is-shuffled", "kid", "kid-biased", "precision-recall", "fdd", "mind", "cmmd"),
    *("fd-solids", "solids-accuracy", "solids-fineness"),
)
"""Those of `davae.evaluate.metrics`, which costs torch."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """What is measured."""

    reconstructions: Count = 256
    """Held-out images for decoder sensitivity: PSNR and SSIM, LPIPS and rFID where their weights are at hand."""
    speed_batch: Whole = 16
    """Images a batch in the speed measurement; 0 leaves it out."""
    batch_size: Count = 64
    """Images reconstructed and decoded at once."""
    claims: bool = False
    """Whether the run is held to the demo's claims."""
    metrics: tuple[str, ...] = ()
    """Of drawn images by features of networks, as `davae evaluate --metrics` names them; their weights are cached."""
    protocol: Literal["adm", "pytorch-fid", "clean"] = "adm"
    """How images are resized for the Inception of these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.metrics:
            if name not in FEATURE_METRICS:
                close = difflib.get_close_matches(name, FEATURE_METRICS, n=1)
                hint = f"Did you mean {close[0]!r}?" if close else f"Allowed are {', '.join(FEATURE_METRICS)}."
                raise ValueError(f"Unknown metric {name!r}. {hint}")
