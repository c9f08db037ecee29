"""Where a text pipeline comes from: what is known of it before any of its weights is read, and its loading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.configuration_utils import FrozenDict

from davae.backbones.pair import Pair
from davae.backbones.registry import text_pipelines
from davae.core.checked import content_hash
from davae.core.files import folder_hash
from davae.core.layout import LatentLayout
from davae.core.precision import SHORT_DTYPES
from davae.data.prompt_cache import PromptCache
from davae.models.adapter import geometry_of
from davae.models.autoencoder import AutoencoderDA
from davae.run import geometry, pipelines
from davae.run.run import Run
from davae.sampling.engine import Engine
from davae.sampling.grid import Grid
from davae.tools.generate.settings import digest


class TextSource(Protocol):
    """Where a pipeline comes from, known before any of its weights is read."""

    @property
    def path(self) -> str:
        """Where it lies, for people."""

    @property
    def identity(self) -> dict[str, Any]:
        """What says which weights they are, wherever they lie, as JSON values."""

    def was(self, before: Mapping[str, Any]) -> bool:
        """Whether an earlier version meant these weights by what it wrote."""

    @property
    def pipeline_name(self) -> str:
        """Class of the pipeline."""

    @property
    def grid(self) -> Grid:
        """The sizes it can draw."""

    @property
    def layout(self) -> LatentLayout:
        """Channels of its latents."""

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
        self.pipeline_name = self._pair.pipeline_name
        if self.pipeline_name not in text_pipelines():
            hint = "" if self._pair.is_text else "'davae sample RECIPE' draws classes. "
            raise ValueError(
                f"Cannot generate with the {self.pipeline_name} in {source}; allowed are "
                f"{', '.join(text_pipelines())}. {hint}Give a pipeline that draws from text."
            )
        # Configs alone: of a pipeline on the hub, weights are fetched when they are loaded.
        vae, transformer = (FrozenDict(_config(self.source, part)) for part in ("vae", "transformer"))
        latents = geometry_of(vae)
        self.grid = Grid.of(self._pair.backbone, transformer, latents.compression)
        self.layout = latents.layout
        taken = self._pair.backbone.latent_channels(transformer)
        if taken != self.layout.channels:
            raise ValueError(
                f"The autoencoder and the transformer in {source} are not a pair: the autoencoder has "
                f"{self.layout.channels} latent channels, the transformer takes {taken}."
            )

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextSource`. A file is read again when something touched it."""
        folder = Path(self.source)
        return {"contents": content_hash(folder)} if folder.is_dir() else {"name": self.source}

    @property
    def path(self) -> str:
        """See `TextSource`."""
        return self.source

    def was(self, before: Mapping[str, Any]) -> bool:
        """See `TextSource`. Earlier versions told files apart by size and date."""
        folder = Path(self.source)
        files = sorted(file for file in folder.rglob("*") if file.suffix in (".json", ".safetensors"))
        stamps = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return before.get("files") == digest(stamps) if stamps else before.get("path") == self.source

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
        self.pipeline_name = run.pair.pipeline_name
        if self.pipeline_name not in text_pipelines():
            raise ValueError(
                f"Run {run.recipe.name} draws with a {self.pipeline_name}; allowed are "
                f"{', '.join(text_pipelines())}. 'davae sample RECIPE' draws classes."
            )
        run.finetuned()
        latents = geometry.upgraded(run)
        size = {"sample_size": run.recipe.image_size // latents.compression}
        config = FrozenDict({**run.pair.transformer_config, **size})
        self.grid = Grid.of(run.pair.backbone, config, latents.compression)
        self.layout = latents.layout
        self.max_length = PromptCache(run.result("prompts")).manifest.max_length

    @property
    def identity(self) -> dict[str, Any]:
        """See `TextSource`."""
        parts = {"trained": self._run.finetuned(), "tokenizer": self._run.result("tokenizer")}
        pair = self._run.pair
        hashes = {name: folder_hash(path) for name, path in parts.items()}
        return {"pair": content_hash(pair.folder(pair.parts)), **hashes}

    @property
    def path(self) -> str:
        """See `TextSource`."""
        return str(self._run.folder.root)

    def was(self, before: Mapping[str, Any]) -> bool:
        """See `TextSource`."""
        return all(before.get(name) == self.identity[name] for name in ("trained", "tokenizer"))

    def load(self, engine: Engine, device: torch.device, with_text: bool = True) -> Any:
        """See `TextSource`."""
        if engine.quantize in ("int8", "nf4"):
            raise ValueError(
                f"Quantisation to {engine.quantize} happens as a saved pipeline is read; got a run. Write one with "
                f"'davae export', or take fp8."
            )
        absent = {} if with_text else dict.fromkeys(self._run.pair.text_parts)
        return pipelines.upgraded(self._run, SHORT_DTYPES[engine.dtype_on(device)], **absent)


def _config(source: str, part: str) -> dict[str, Any]:
    config: Any = AutoencoderDA.load_config(source, subfolder=part)  # reads any model's config.json
    return config
