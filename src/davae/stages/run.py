"""A run: a recipe, its folder, and what its stages share (data, pair, device, observer)."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from davae.data.source import ImageSource
from davae.data.splits import open_train_test
from davae.models.autoencoder import AutoencoderDA
from davae.models.loading import autoencoder_folder, load_autoencoder
from davae.recipe import Recipe, dump_recipe
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages.record import Record
from davae.train.checkpoint import CheckpointStore
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
        # One process encodes or measures while the others wait for it.
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
        """(training, test) images."""
        data = self.recipe.data
        pretrain = self.recipe.pretrain
        side = self.recipe.image_size or (pretrain.image_size if pretrain is not None else 1)
        for training in (self.recipe.tokenizer, None if pretrain is None else pretrain.autoencoder):
            if training is not None and training.crop_from is not None:
                side = max(side, training.crop_from)
        train, test = open_train_test(data.kind, data.path, side, data.test_count, data.count, data.seed)
        skipped = list(dict.fromkeys((*train.skipped, *test.skipped)))  # parts of one set share the list
        self.skipped = skipped
        for name, reason in skipped[:10]:
            self.observer.say(f"skipped {name}: {reason}")
        if skipped:
            self.observer.say(f"{len(skipped)} images could not be used; the list is in run.json.")
        return train, test

    @cached_property
    def pair(self) -> LightningDiTPipeline:
        """The pretrained pair that this run upgrades."""
        return load_pair(self.pair_path)

    @property
    def pair_path(self) -> Path:
        """Folder of the pretrained pair."""
        if self.recipe.pretrain is not None:
            return self.folder / "pretrain" / "pipeline"
        return embedded_pair() if self.recipe.pair == EMBEDDED else Path(self.recipe.pair)

    @cached_property
    def base_path(self) -> Path:
        """Folder of the pair's autoencoder. A pair may be nothing but an autoencoder; one on the hub is fetched."""
        is_named = self.recipe.pretrain is None and self.recipe.pair != EMBEDDED
        return autoencoder_folder(self.recipe.pair if is_named else self.pair_path)

    def base_autoencoder(self) -> Any:
        """The pretrained autoencoder that this run upgrades, fp32."""
        return load_autoencoder(self.base_path)

    def check_pair(self, scale: int, num_classes: int) -> None:
        """Refuse, before anything is trained, what the pair's transformer has no positions or classes for.

        Raises:
            ValueError: the image size or the number of classes does not fit the pair.
        """
        if self.recipe.finetune is None:
            return
        expected = self.pair.image_size * scale
        if self.recipe.image_size != expected:
            raise ValueError(
                f"image_size does not fit the pair; got {self.recipe.image_size}, allowed {expected} (the pair draws "
                f"{self.pair.image_size} px, the tokenizer's scale is {scale}). Set image_size, or take another pair."
            )
        known = self.pair.transformer.config.num_classes
        if num_classes > known:
            raise ValueError(
                f"The data have more classes than the pair; got {num_classes}, allowed {known}. "
                f"Merge classes, or take a pair that was trained on as many."
            )

    def path_of(self, section: str) -> Path:
        """Folder of a section's result, in this run or the one it is taken from."""
        names = {"tokenizer": "tokenizer", "cache": "latents", "finetune": "pipeline"}
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


def load_pair(path: Path) -> LightningDiTPipeline:
    """A saved pair. Any diffusers pipeline folder whose model_index.json names davae's classes."""
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"There is no pretrained pair in {path}: model_index.json is missing. "
            f"Give the folder of a saved pipeline, or 'embedded'."
        )
    return LightningDiTPipeline.from_pretrained(path, dtype=torch.float32)


def nameless(model: Any) -> Any:
    """The model without the path it was loaded from: what is saved must not depend on where a part of it lay."""
    model.register_to_config(_name_or_path="")
    return model


def folder_hash(path: Path) -> str:
    """Hash of the files of a saved model: names, sizes and contents."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.suffix in (".json", ".safetensors"):
            digest.update(str(file.relative_to(path)).encode())
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
