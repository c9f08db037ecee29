"""Where a text pipeline comes from: what is known of it before any of its weights is read, and its loading."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import FrozenDict

from davae.data.prompts import PromptCache
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.sampling.grid import Grid, stored_compression
from davae.sampling.text import TEXT_PIPELINES
from davae.stages.generate.engine import DTYPES, Engine
from davae.stages.pairs import Pair, load_upgraded
from davae.stages.run import Run, folder_hash


class TextSource(Protocol):
    """Where a pipeline comes from, known before any of its weights is read."""

    @property
    def identity(self) -> dict[str, Any]:
        """What says which weights they are, as JSON values."""

    @property
    def pipeline_name(self) -> str:
        """Class of the pipeline."""

    @property
    def grid(self) -> Grid:
        """The sizes it can draw."""

    @property
    def channels(self) -> tuple[int, int]:
        """(base, detail) channels of its latents."""

    @property
    def max_length(self) -> int | None:
        """Tokens of the long text encoder that it was trained with; None where nobody said."""

    def load(self, engine: Engine, device: torch.device, with_text: bool = True) -> Any:
        """The pipeline; `with_text` False leaves out what encodes text."""


class SavedPipeline:
    """A pipeline in a folder or on the hub.

    Args:
        source: the folder, or "org/name".

    Raises:
        FileNotFoundError: there is none.
        ValueError: it does not draw from text, or its autoencoder and transformer are not a pair.
    """

    max_length = None

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._pair = Pair(source)
        self.pipeline_name = self._pair.index["_class_name"]
        if self.pipeline_name not in TEXT_PIPELINES:
            hint = "'davae sample RECIPE' draws classes. " if self.pipeline_name == "LightningDiTPipeline" else ""
            raise ValueError(
                f"Cannot generate with the {self.pipeline_name} in {source}; allowed are "
                f"{', '.join(TEXT_PIPELINES)}. {hint}Give a pipeline that draws from text."
            )
        # Configs alone: of a pipeline on the hub, weights are fetched when they are loaded.
        vae, transformer = (FrozenDict(_config(self.source, part)) for part in ("vae", "transformer"))
        self.grid = Grid.of(self._pair.backbone, transformer, stored_compression(vae))
        self.channels = _channels(vae)
        taken = self._pair.backbone.latent_channels(transformer)
        if taken != sum(self.channels):
            raise ValueError(
                f"The autoencoder and the transformer in {source} are not a pair: the autoencoder has "
                f"{sum(self.channels)} latent channels, the transformer takes {taken}."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextSource`. A local folder's weights are told apart by size and date."""
        folder = Path(self.source)
        files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
        stamps = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return {"path": self.source, "files": digest(stamps)} if stamps else {"path": self.source}

    def load(self, engine: Engine, device: torch.device, with_text: bool = True) -> Any:
        """See `TextSource`."""
        return engine.load(self._pair, device, **({} if with_text else dict.fromkeys(self._pair.text_parts)))


class FinishedRun:
    """The upgraded pair of a finished text-to-image run.

    Args:
        run: its fine-tuning is done.

    Raises:
        FileNotFoundError: it is not.
        ValueError: it does not draw from text.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.pipeline_name = run.pair.pipeline_class.__name__
        if self.pipeline_name not in TEXT_PIPELINES:
            raise ValueError(
                f"Run {run.recipe.name} draws with a {self.pipeline_name}; allowed are {', '.join(TEXT_PIPELINES)}. "
                f"'davae sample RECIPE' draws classes."
            )
        run.upgraded_path()
        vae = FrozenDict(AutoencoderDA.load_config(run.path_of("tokenizer")))
        compression = stored_compression(vae)
        size = {"sample_size": run.recipe.image_size // compression}
        self.grid = Grid.of(run.pair.backbone, FrozenDict({**run.pair.transformer_config, **size}), compression)
        self.channels = _channels(vae)
        self.max_length = PromptCache(run.path_of("prompts")).manifest.max_length

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextSource`."""
        parts = {"trained": self._run.upgraded_path(), "tokenizer": self._run.path_of("tokenizer")}
        hashes = {name: folder_hash(path) for name, path in parts.items()}
        return {"path": str(self._run.folder), "pair": self._run.pair.source, **hashes}

    def load(self, engine: Engine, device: torch.device, with_text: bool = True) -> Any:
        """See `TextSource`."""
        if engine.quantize in ("int8", "nf4"):
            raise ValueError(
                f"Quantisation to {engine.quantize} happens as a saved pipeline is read; got a run. Write one with "
                f"'davae export', or take fp8."
            )
        dtype = DTYPES[engine.dtype_on(device)]
        return load_upgraded(self._run, dtype, **({} if with_text else dict.fromkeys(self._run.pair.text_parts)))


def _config(source: str, part: str) -> dict[str, Any]:
    return AutoencoderDA.load_config(source, subfolder=part)  # reads any model's config.json


def _channels(vae: FrozenDict) -> tuple[int, int]:
    if vae["_class_name"] == AutoencoderDA.__name__:
        return vae["latent_channels"] - vae["detail_channels"], vae["detail_channels"]
    return family_of(vae["_class_name"]).latent_channels(vae), 0


def digest(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()
