"""A recipe's transformers without weights: what is trained, on which latents, with how many tokens.

It needs the pair's configs alone; of a published model (`backbones.public`), or of one that the recipe trains from
scratch, not even those.
"""

from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from davae.backbones.lora import prepare_lora
from davae.backbones.public import known_model, public_model
from davae.backbones.registry import backbone_of
from davae.backbones.widening import widen
from davae.evaluate.cost import Workload
from davae.models.autoencoder import AutoencoderDA
from davae.models.faces import compression_of, layout_of
from davae.models.lightningdit import LightningDiT
from davae.recipe import PretrainConfig
from davae.stages.phase import Phase
from davae.stages.run import Run
from davae.train.diffusion import DiffusionConfig

_SCALE, _MAX_LENGTH, _CLASSES = 2, 256, 1000


@dataclass(frozen=True)
class Training:
    """One training of a transformer.

    Args:
        section: of the recipe.
        config: its settings.
        transformer: on the meta device, widened and with adapters; trainings may share one.
        workload: what it is given.
    """

    section: str
    config: DiffusionConfig
    transformer: Any
    workload: Workload

    def prepared(self) -> Any:
        """The transformer, with gradient checkpointing as this training has it."""
        if self.config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        else:
            self.transformer.disable_gradient_checkpointing()
        return self.transformer.train()


@dataclass(frozen=True)
class Outline:
    """Shapes of a run.

    Args:
        name: of the pair.
        pretrained: its transformer, on the meta device.
        compression: f of its autoencoder.
        scale: s; 1 in a recipe that makes a pair only.
        image_size: side of the images, pixels.
        trainings: of transformers, in order.
        assumed: what neither the recipe nor the pair says.
    """

    name: str
    pretrained: Any
    compression: int
    scale: int
    image_size: int
    trainings: tuple[Training, ...]
    assumed: tuple[str, ...]

    @property
    def unit(self) -> int:
        """Pixels of a token, a side."""
        return self.compression * self.scale * backbone_of(self.pretrained).token_side(self.pretrained.config)

    def tokens(self, size: int, compression: int) -> int:
        """Tokens of square images of `size` px at this compression."""
        side = size // compression
        return backbone_of(self.pretrained).num_tokens(self.pretrained.config, side, side)


def outline_of(run: Run, model: str | None = None) -> Outline:
    """The outline of a run.

    Args:
        run: its recipe trains a transformer.
        model: name of a published model that stands for the pair. A pair that is known by its name on the hub needs
            none.

    Raises:
        FileNotFoundError: the pair is not at hand, not made by the recipe, and not a known one.
        ValueError: there is no such model.
    """
    recipe, assumed, trainings = run.recipe, list[str](), list[Training]()
    name, transformer, compression = _pretrained(run, model, assumed)
    pretrain = recipe.pretrain
    if pretrain is not None and pretrain.transformer is not None:
        side = pretrain.image_size // compression
        given = Workload.of(transformer, side, side, 0)
        trainings.append(Training("pretrain.transformer", pretrain.transformer, transformer, given))
    if recipe.finetune is None:
        size = 0 if pretrain is None else pretrain.image_size
        return Outline(name, transformer, compression, 1, size, tuple(trainings), tuple(assumed))
    scale, detail = _upgrade(run, backbone_of(transformer).latent_channels(transformer.config), assumed)
    widened = widen(transformer, detail)
    if recipe.finetune.lora is not None:
        prepare_lora(widened, recipe.finetune.lora, recipe.seed)
    side = recipe.image_size // (compression * scale)
    given = Workload.of(widened, side, side, _max_length(run, assumed))
    trainings.append(Training("finetune", recipe.finetune, widened, given))
    if recipe.realism is not None:
        trainings.append(Training("realism", Phase(run, "realism").config, widened, given))
    return Outline(name, transformer, compression, scale, recipe.image_size, tuple(trainings), tuple(assumed))


def _pretrained(run: Run, model: str | None, assumed: list[str]) -> tuple[str, Any, int]:
    """(name, transformer on the meta device, compression)."""
    name = run.pair_source if model is None else model
    if model is not None or public_model(name) is not None:
        public = known_model(name)
        return name, public.build(), public.compression
    if run.recipe.pretrain is not None:
        return "the pair of section pretrain", *_from_scratch(run, run.recipe.pretrain, assumed)
    with torch.device("meta"):
        transformer = run.pair.model_class("transformer").from_config(run.pair.transformer_config)
    return run.recipe.pair, transformer, run.base_compression


def _from_scratch(run: Run, section: PretrainConfig, assumed: list[str]) -> tuple[Any, int]:
    """What `davae pretrain` trains: (transformer, compression)."""
    assert section.transformer is not None
    try:
        classes = max(len(run.sources[0].class_names), 1)
    except (OSError, ValueError):
        classes = _CLASSES
        assumed.append(f"{classes:,} classes, because the data cannot be opened")
    with torch.device("meta"):
        autoencoder = getattr(diffusers, section.autoencoder.model)(**section.autoencoder.model_config)
        compression = compression_of(autoencoder)
        transformer = LightningDiT(
            in_channels=layout_of(autoencoder).channels,
            sample_size=section.image_size // compression,
            num_classes=classes,
            **section.transformer.model_config,
        )
    return transformer, compression


def _upgrade(run: Run, base_channels: int, assumed: list[str]) -> tuple[int, int]:
    """(scale, detail channels) of the tokenizer."""
    config = run.recipe.tokenizer
    if config is not None:
        return config.scale, config.detail_channels or base_channels
    try:
        stored = AutoencoderDA.load_config(run.path_of("tokenizer"))
    except FileNotFoundError:
        root = run.recipe.reuse["tokenizer"]
        assumed.append(f"scale {_SCALE} and {base_channels} detail channels, because {root} has no tokenizer yet")
        return _SCALE, base_channels
    return stored["scale"], stored["detail_channels"]


def _max_length(run: Run, assumed: list[str]) -> int:
    if run.recipe.prompts is not None:
        return run.recipe.prompts.max_length
    if run.recipe.has("prompts"):
        assumed.append(f"prompts of {_MAX_LENGTH} tokens, because another run encoded them")
    return _MAX_LENGTH
