"""A pretrained pair as a run sees it: a saved pipeline that is opened part by part.

Text encoders, transformer and autoencoder of a large model are never in memory together unless an image is drawn.
"""

import importlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch

from davae.backbones.base import Backbone
from davae.backbones.lora import LORA_FILE, load_adapter
from davae.backbones.registry import BACKBONES
from davae.backbones.widening import widen_with_report
from davae.core.widen import Init, KeyReport
from davae.models.autoencoder import AutoencoderDA
from davae.models.loading import pipeline_folder
from davae.sampling.pipeline import LightningDiTPipeline

if TYPE_CHECKING:
    from davae.stages.run import Run

_INDEX = "model_index.json"
_TRANSFORMER = "transformer"


class Pair:
    """A saved pipeline by its folder or its name on the hub.

    Args:
        source: the folder, or "org/name"; parts of a hub repository are fetched when they are opened.

    Raises:
        FileNotFoundError: there is no saved pipeline.
        ValueError: its transformer is of no known family.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        index = self.folder().joinpath(_INDEX)
        if not index.is_file():
            raise FileNotFoundError(
                f"There is no pretrained pair in {source}: {_INDEX} is missing. "
                f"Give the folder of a saved pipeline, its name on the hub, or 'embedded'."
            )
        self.index: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        if _TRANSFORMER not in self.index:
            raise ValueError(
                f"Cannot upgrade the pair in {source}: its {self.index.get('_class_name')} has no transformer; got "
                f"{', '.join(self.parts)}. Take a pipeline with a diffusion transformer."
            )
        if self.index[_TRANSFORMER][1] not in BACKBONES:
            raise ValueError(
                f"Cannot upgrade the pair in {source}: its transformer is a {self.index[_TRANSFORMER][1]}; known are "
                f"{', '.join(sorted(BACKBONES))}."
            )

    def folder(self, parts: Sequence[str] = ()) -> Path:
        """The folder on disk, with these parts fetched."""
        return pipeline_folder(self.source, parts)

    @property
    def parts(self) -> list[str]:
        """Names of the components that are there."""
        return [
            name
            for name, value in self.index.items()
            if not name.startswith("_") and isinstance(value, list) and value[1] is not None
        ]

    @property
    def pipeline_class(self) -> Any:
        """Class of the pipeline."""
        name = self.index["_class_name"]
        return LightningDiTPipeline if name == LightningDiTPipeline.__name__ else getattr(diffusers, name)

    @property
    def backbone(self) -> Backbone:
        """Family of the transformer."""
        return BACKBONES[self.index[_TRANSFORMER][1]]

    @property
    def is_text(self) -> bool:
        """Whether images are drawn from prompts; else from class labels."""
        return self.backbone.encode_text is not None

    @property
    def text_parts(self) -> list[str]:
        """Components that encode text and are there."""
        return [name for name in self.backbone.text_parts if name in self.parts]

    @cached_property
    def transformer_config(self) -> Any:
        """Config of the transformer with every default, without its weights."""
        cls = self.model_class(_TRANSFORMER)
        with torch.device("meta"):
            return cls.from_config(cls.load_config(self.folder([_TRANSFORMER]) / _TRANSFORMER)).config

    def load_transformer(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pretrained transformer."""
        path = self.folder([_TRANSFORMER]) / _TRANSFORMER
        model, found = self.model_class(_TRANSFORMER).from_pretrained(
            path, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        _expect_all(path, found["missing_keys"], found["unexpected_keys"])
        return model.eval()

    def load_scheduler(self) -> Any:
        """The scheduler that the pair is drawn with."""
        library, name = self.index["scheduler"]
        cls = getattr(importlib.import_module(library), name)
        return cls.from_pretrained(self.folder(["scheduler"]) / "scheduler")

    def load(self, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
        """The whole pipeline; `components` take the place of saved ones."""
        path = self.folder([name for name in self.parts if name not in components])
        return self.pipeline_class.from_pretrained(path, dtype=dtype, use_safetensors=True, **components)

    def model_class(self, part: str) -> Any:
        """Class of a component."""
        library, name = self.index[part]
        return getattr(importlib.import_module(library), name)


def _expect_all(path: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse weights that are not the model's: diffusers goes on with fresh ones, and logs it."""
    if missing or unexpected:
        raise ValueError(
            f"The weights in {path} do not fit their config: {len(missing)} missing, {len(unexpected)} unexpected, "
            f"for example {', '.join((*missing, *unexpected)[:3])}. Correct config.json, or save the model again."
        )


def load_upgraded(run: "Run", dtype: torch.dtype = torch.float32, **components: Any) -> Any:
    """The upgraded pair of a run as a stock pipeline, in eval mode.

    Of a text-to-image run: the pretrained pair with the trained autoencoder, and its transformer widened with the
    trained parts, LoRA folded in. `components` take the place of saved ones, for example None of a text encoder.
    """
    trained = run.upgraded_path()
    if not run.pair.is_text:
        return Pair(trained).load(dtype, **components)
    autoencoder = run.tokenizer()
    return run.pair.load(
        dtype,
        vae=autoencoder.to("cpu", dtype),
        transformer=load_trained(run.pair, trained, autoencoder, run.recipe.image_size).to(dtype).eval(),
        scheduler=load_scheduler(run.pair, trained),
        **components,
    )


def widened(
    pair: Pair, autoencoder: AutoencoderDA, image_size: int, init: Init = "zero", seed: int = 0
) -> tuple[Any, KeyReport]:
    """The pair's transformer for an autoencoder's latents and images of `image_size` px; what became of its keys."""
    detail = autoencoder.layout.detail_channels
    transformer, report = widen_with_report(pair.load_transformer(), detail, init, seed, consume=True)
    if pair.backbone.default_size == "stored":
        transformer.register_to_config(sample_size=image_size // autoencoder.compression)
    return transformer, report


def load_trained(pair: Pair, trained: Path, autoencoder: AutoencoderDA, image_size: int) -> Any:
    """The transformer of a finished text-to-image training as an ordinary model, fp32."""
    if not (trained / LORA_FILE).exists():
        return pair.model_class(_TRANSFORMER).from_pretrained(trained, use_safetensors=True)
    transformer, _ = widened(pair, autoencoder, image_size)
    load_adapter(transformer, trained)
    return transformer


def load_scheduler(pair: Pair, trained: Path) -> Any:
    """The scheduler that a trained transformer is drawn with."""
    return type(pair.load_scheduler()).from_pretrained(trained / "scheduler")
