"""A run: a recipe, its folder, and what its stages share (data, pair, device, observer)."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from davae.data.buckets import Size, bucket_sizes
from davae.data.latents import LatentCache
from davae.data.source import ImageSource
from davae.data.splits import filling, open_train_test
from davae.models.autoencoder import AutoencoderDA
from davae.models.faces import compression_of
from davae.models.loading import autoencoder_folder, load_autoencoder
from davae.recipe import DataConfig, Recipe, dump_recipe
from davae.stages.pairs import Pair
from davae.stages.record import Record
from davae.train.checkpoint import CheckpointStore
from davae.train.feed import Share
from davae.train.journal import Journal, Observer, Silent
from davae.train.loop import LoopConfig

EMBEDDED = "embedded"


class Run:
    """One run on disk.

    Args:
        recipe: what to do.
        runs_dir: folder of all runs; this one lives in `runs_dir / recipe.name`.
        observer: who watches.
        overwrite: whether training stages may be started anew where their settings changed.
    """

    def __init__(
        self, recipe: Recipe, runs_dir: Path = Path("runs"), observer: Observer | None = None, overwrite: bool = False
    ) -> None:
        self.recipe, self.overwrite = recipe, overwrite
        self.folder = runs_dir / recipe.name
        self.observer: Observer = observer or Silent()
        self.skipped: Sequence[Sequence[str]] | None = None
        """(name, reason) of unusable images; None until the data were opened."""
        self.record = Record(self.folder / "run.json", recipe.name)

    @cached_property
    def accelerator(self) -> Accelerator:
        """Placement and distribution, by accelerate."""
        # Batch-norm statistics of the discriminator stay local: two forwards precede one backward there.
        # torch 2.13 deprecates the argument, and its replacement would still synchronise them once.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        local = DistributedDataParallelKwargs(broadcast_buffers=False)
        # One process measures, or has more left to encode, while the others wait for it.
        patient = InitProcessGroupKwargs(timeout=timedelta(days=1))
        # The recipe says precision and accumulation; what the environment says would be applied on top.
        accelerator = Accelerator(
            cpu=self.recipe.device == "cpu" or not torch.cuda.is_available(),
            mixed_precision="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[local, patient],
        )
        if accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ValueError(
                f"Training is distributed by data parallelism only; got {accelerator.distributed_type.value}. "
                f"Launch with 'accelerate launch --multi_gpu' or torchrun."
            )
        return accelerator

    @cached_property
    def sources(self) -> tuple[ImageSource, ImageSource]:
        """(training, test) images that fill a square of the image size, or of what crops are cut from."""
        pretrain = self.recipe.pretrain
        side = self.recipe.image_size or (pretrain.image_size if pretrain is not None else 1)
        for training in (self.recipe.tokenizer, None if pretrain is None else pretrain.autoencoder):
            if training is not None and training.crop_from is not None:
                side = max(side, training.crop_from)
        if self._smallest_side >= self.recipe.image_size:  # no aspect-ratio buckets: nothing smaller is of use
            return self._open(self.recipe.data, side)
        train, test = self._every_shape
        return filling(train, side), filling(test, side)

    @property
    def finetune_source(self) -> ImageSource:
        """Training images of the transformer, which may have other shapes than a square."""
        return self.sources[0] if self._smallest_side >= self.recipe.image_size else self._every_shape[0]

    @cached_property
    def realism_source(self) -> ImageSource:
        """Training images of the second fine-tuning."""
        assert self.recipe.realism is not None
        return self._open(self.recipe.realism.data, self._smallest_side)[0]

    @cached_property
    def buckets(self) -> tuple[Size, ...]:
        """(height, width) of the images that the transformer is trained on, pixels."""
        config, size = self.recipe.cache, self.recipe.image_size
        if "cache" in self.recipe.reuse:
            stored = LatentCache(self.path_of("cache")).manifest.buckets
            return tuple((height, width) for height, width, _ in stored)
        if config is None or config.max_aspect == 1:
            return ((size, size),)
        if self.recipe.tokenizer is not None:
            compression = self.base_compression * self.recipe.tokenizer.scale
        else:
            compression = self.tokenizer().compression
        return bucket_sizes(
            size, compression * self.pair.backbone.token_side(self.pair.transformer_config), config.max_aspect
        )

    @property
    def _smallest_side(self) -> int:
        return min(map(min, self.buckets))

    @cached_property
    def _every_shape(self) -> tuple[ImageSource, ImageSource]:
        return self._open(self.recipe.data, self._smallest_side)

    def _open(self, data: DataConfig | None, side: int) -> tuple[ImageSource, ImageSource]:
        assert data is not None
        train, test = open_train_test(data.kind, data.path, side, data.test_count, data.count, data.seed)
        skipped = list(dict.fromkeys((*train.skipped, *test.skipped)))  # parts of one set share the list
        self.skipped = skipped
        for name, reason in skipped[:10]:
            self.observer.say(f"skipped {name}: {reason}")
        if skipped:
            self.observer.say(f"{len(skipped)} images could not be used; the list is in run.json.")
        return train, test

    @property
    def pair_source(self) -> str:
        """Folder of the pretrained pair, or its name on the hub."""
        if self.recipe.pretrain is not None:
            return str(self.folder / "pretrain" / "pipeline")
        return str(embedded_pair()) if self.recipe.pair == EMBEDDED else self.recipe.pair

    @cached_property
    def pair(self) -> Pair:
        """The pretrained pair that this run upgrades."""
        return Pair(self.pair_source)

    @cached_property
    def base_path(self) -> Path:
        """Folder of the pair's autoencoder. A pair may be nothing but an autoencoder; one on the hub is fetched."""
        return autoencoder_folder(self.pair_source)

    def base_autoencoder(self) -> Any:
        """The pretrained autoencoder that this run upgrades, fp32."""
        return load_autoencoder(self.base_path)

    def check(self) -> None:
        """Refuse, before the first stage, what a later one would stop at.

        Raises:
            ValueError: a batch cannot be shared by the processes, or the recipe is for another kind of pair.
            FileNotFoundError: there is no file of prompts to draw.
        """
        recipe, pretrain = self.recipe, self.recipe.pretrain
        trainings: list[LoopConfig | None] = [recipe.tokenizer, recipe.finetune, recipe.realism]
        trainings += [] if pretrain is None else [pretrain.autoencoder, pretrain.transformer]
        for config in trainings:
            if config is not None:
                Share(config.batch_size, config.accumulation, self.accelerator.num_processes)
        if (
            recipe.sample is not None
            and recipe.sample.prompts is not None
            and not Path(recipe.sample.prompts).is_file()
        ):
            raise FileNotFoundError(f"There is no file {recipe.sample.prompts}, which sample.prompts names.")
        if pretrain is None and recipe.finetune is not None:
            self._check_kind()

    def _check_kind(self) -> None:
        if self.pair.is_text != self.recipe.has("prompts"):
            raise ValueError(
                f"The pair {self.pair.source} draws from {'prompts' if self.pair.is_text else 'class labels'}, and "
                f"the recipe has {'no' if self.pair.is_text else 'a'} section prompts. "
                f"{'Add' if self.pair.is_text else 'Remove'} it, or take another pair."
            )

    def check_pair(self, scale: int, num_classes: int) -> None:
        """Refuse, before anything is trained, what the pair's transformer has no positions or classes for.

        Raises:
            ValueError: the image size or the number of classes does not fit the pair.
        """
        if self.recipe.finetune is None:
            return
        self._check_kind()
        backbone, config = self.pair.backbone, self.pair.transformer_config
        unit = self.base_compression * scale * backbone.token_side(config)
        if self.recipe.image_size % unit:
            raise ValueError(
                f"image_size does not fit the pair; got {self.recipe.image_size}, allowed are multiples of {unit} "
                f"(compression {self.base_compression} x scale {scale} x patch {backbone.token_side(config)}). "
                f"Use {max(self.recipe.image_size // unit, 1) * unit}."
            )
        expected = self.base_compression * config["sample_size"] * scale
        if backbone.default_size == "fixed" and self.recipe.image_size != expected:
            raise ValueError(
                f"image_size does not fit the pair; got {self.recipe.image_size}, allowed {expected} (the pair draws "
                f"{expected // scale} px, the tokenizer's scale is {scale}). Set image_size, or take another pair."
            )
        known = config.get("num_classes")
        if known is not None and num_classes > known:
            raise ValueError(
                f"The data have more classes than the pair; got {num_classes}, allowed {known}. "
                f"Merge classes, or take a pair that was trained on as many."
            )

    @cached_property
    def base_compression(self) -> int:
        """Pixels a latent position of the base autoencoder, a side."""
        return compression_of(load_autoencoder(self.base_path))

    @property
    def upgraded_name(self) -> str:
        """What fine-tuning leaves: a whole small pipeline, or the trained parts of a large one."""
        return "transformer" if self.recipe.has("prompts") else "pipeline"

    def path_of(self, section: str) -> Path:
        """Folder of a section's result, in this run or the one it is taken from."""
        names = {"tokenizer": "tokenizer", "cache": "latents", "prompts": "prompts", "finetune": self.upgraded_name}
        root = Path(self.recipe.reuse[section]) if section in self.recipe.reuse else self.folder
        path = root / names[section]
        if section in self.recipe.reuse and not path.exists():
            raise FileNotFoundError(
                f"Section {section} takes its result from {root}, which has no {names[section]}/. "
                f"Finish that run first, or correct the path."
            )
        if not path.exists():
            verb = {"tokenizer": "train-tokenizer"}.get(section, section)
            raise FileNotFoundError(f"There is no {names[section]}/ in {root} yet. Run 'davae {verb} RECIPE' first.")
        return path

    def upgraded_path(self) -> Path:
        """Folder of what the last fine-tuning left."""
        path = self.path_of("finetune")
        if self.recipe.realism is None:
            return path
        path = self.folder / "realism" / self.upgraded_name
        if not path.exists():
            raise FileNotFoundError(f"There is no {path} yet. Run 'davae finetune RECIPE' first.")
        return path

    def tokenizer(self) -> AutoencoderDA:
        """The trained autoencoder."""
        autoencoder = nameless(AutoencoderDA.from_pretrained(self.path_of("tokenizer")))
        return autoencoder.to(self.accelerator.device).eval()

    def reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        return tensor if self.accelerator.num_processes == 1 else self.accelerator.reduce(tensor, "mean")

    def journal(self, stage: str) -> Journal:
        """Curves of one stage."""
        return Journal(self.folder / "stats.jsonl", stage)

    def store(self, stage: str, identity: Mapping[str, Any], keep: int) -> CheckpointStore:
        """Checkpoints of one training stage."""
        store = CheckpointStore(self.folder / "checkpoints" / stage, identity, keep)
        if self.overwrite and self.accelerator.is_main_process and not store.belongs():
            store.clear()
        self.accelerator.wait_for_everyone()
        return store

    def write_recipe(self) -> None:
        """Keep the resolved recipe with the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.yaml").write_text(dump_recipe(self.recipe))


def embedded_pair() -> Path:
    """Folder of the pair that comes with the package."""
    return Path(str(files("davae") / "pair"))


def nameless(model: Any) -> Any:
    """The model without the path it was loaded from: what is saved must not depend on where a part of it lay."""
    model.register_to_config(_name_or_path="")
    return model


def folder_hash(path: Path) -> str:
    """Hash of the files of a saved model: names, sizes and contents. Unchanged files are read once a process."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix in (".json", ".safetensors")]
    stats = [(file, file.stat()) for file in files]
    return _hash_of(path, tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


@lru_cache(maxsize=64)
def _hash_of(root: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file, _, _ in files:
        digest.update(str(file.relative_to(root)).encode())
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 22), b""):
                digest.update(block)
    return digest.hexdigest()


def replace_folder(temporary: Path, target: Path) -> None:
    """Put a completely written folder in its place."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(target)


def settings(config: Any) -> dict[str, Any]:
    """A section as JSON values, for hashes and comparisons; without what changes no result."""
    values = json.loads(json.dumps(asdict(config)))
    ignored = config.BOOKKEEPING if isinstance(config, LoopConfig) else ()
    return {key: value for key, value in values.items() if key not in ignored}
