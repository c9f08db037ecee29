"""What the stages of a recipe train, encode and draw, without weights: networks and tasks as `run.build` makes them.

It needs the pair's configs alone; of a published model (`backbones.public`), or of a pair that the recipe trains from
scratch, not even those.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from davae.backbones.public import known_model, public_model
from davae.backbones.registry import backbone_of
from davae.evaluate.cost import (
    Cost,
    Workload,
    decoding_cost,
    drawing_cost,
    encoding_cost,
    image_batch,
    perceptual_network,
    public_autoencoder,
    training_cost,
)
from davae.models.adapter import LatentGeometry, adapt
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.models.chunking import images_at_once
from davae.models.loading import autoencoder_outline
from davae.recipe import GIVEN_AUTOENCODER, CacheConfig
from davae.run import build, geometry
from davae.run.rounds import Round, rounds_of
from davae.run.run import Run
from davae.sampling.sampler import DECODED_AT_ONCE
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.feed import Share
from davae.train.judge import JudgeTask
from davae.train.objective import ReconstructionConfig
from davae.train.settings import LoopConfig
from davae.train.tokenizer import TokenizerTask

_SCALE, _MAX_LENGTH, _CLASSES, _IMAGES = 2, 256, 1000, 100_000


@dataclass(frozen=True)
class StageCost:
    """What a stage costs, and the settings that it costs it with.

    Args:
        cost: counted.
        training: settings of a training; None for encoding and drawing.
        can_checkpoint: whether gradient checkpointing is there to be switched on.
    """

    cost: Cost
    training: LoopConfig | None = None
    can_checkpoint: bool = False


@dataclass
class Outline:
    """Networks of a run without weights.

    Args:
        run: of the recipe.
        model: name of a published model that stands for the pair; None knows pairs by their names on the hub.
        devices: that share every batch.
        assumed: what neither the recipe nor the pair says, as it comes up.

    Raises:
        FileNotFoundError: while it is used: the pair is not at hand, not made by the recipe, and not a known one.
        ValueError: while it is used: there is no such model.
    """

    run: Run
    model: str | None = None
    devices: int = 1
    assumed: list[str] = field(default_factory=list)

    @cached_property
    def public(self) -> str | None:
        """Name of the published model that the pair is, or that stands for it."""
        if self.model is not None:
            known_model(self.model)
            return public_model(self.model)
        return None if self.run.recipe.pretrain is not None else public_model(self.run.recipe.pair)

    @cached_property
    def base_autoencoder(self) -> Any:
        """The pair's autoencoder."""
        pretrain = self.run.recipe.pretrain
        if pretrain is not None and pretrain.autoencoder is not None:
            with torch.device("meta"):
                return build.new_base_autoencoder(pretrain.autoencoder)
        if self.public is not None:
            return public_autoencoder(self.public)
        given = self.run.recipe.reuse.get(GIVEN_AUTOENCODER)
        return autoencoder_outline(self.run.base_path if given is None else Path(given))

    @cached_property
    def base(self) -> LatentGeometry:
        """Latents of the pair's autoencoder. The transformer of a published model brings its compression along."""
        return adapt(self.base_autoencoder).geometry

    @cached_property
    def tokenizer(self) -> AutoencoderDA:
        """The upgraded autoencoder."""
        config = self.run.recipe.tokenizer
        if config is not None:
            with torch.device("meta"):
                return build.new_tokenizer(config, self.base_autoencoder)
        try:
            stored = self.run.result("tokenizer")
        except FileNotFoundError:
            root, channels = self.run.recipe.reuse["tokenizer"], self.base.layout.base_channels
            self._assume(f"scale {_SCALE} and {channels} detail channels, because {root} has no tokenizer yet")
            with torch.device("meta"):
                return AutoencoderDA.from_base(self.base_autoencoder, _SCALE)
        outline: AutoencoderDA = autoencoder_outline(stored)
        return outline

    @cached_property
    def upgraded(self) -> LatentGeometry:
        """Latents of the upgraded autoencoder; those of the pair's in a recipe without one."""
        if not self.run.recipe.has("tokenizer"):
            return self.base
        config = self.run.recipe.tokenizer
        if config is not None:
            return geometry.upgrade(self.base, config.scale, config.detail_channels)
        return adapt(self.tokenizer).geometry

    @cached_property
    def pretrained(self) -> Any:
        """The pair's transformer."""
        pretrain = self.run.recipe.pretrain
        if pretrain is not None and pretrain.transformer is not None:
            with torch.device("meta"):
                return build.new_base_transformer(pretrain.transformer, self.base, pretrain.image_size, self._classes)
        if self.public is not None:
            return known_model(self.public).build()
        with torch.device("meta"):
            return self.run.pair.model_class("transformer").from_config(self.run.pair.transformer_config)

    def transformer(self, current: Round) -> Any:
        """The transformer of a round as its training starts from it."""
        config, size = current.config, self.run.recipe.image_size
        wide, _ = build.widened(self.pretrained, self.upgraded, size, config.init, current.seed)
        return build.trainable(wide, current)

    @property
    def size(self) -> int:
        """Side of the images, pixels."""
        pretrain = self.run.recipe.pretrain
        return self.run.recipe.image_size or (0 if pretrain is None else pretrain.image_size)

    def tokens(self, size: int, compression: int) -> int:
        """Tokens of square images of `size` px at this compression."""
        side = size // compression
        return backbone_of(self.pretrained).num_tokens(self.pretrained.config, side, side)

    @property
    def unit(self) -> int:
        """Pixels of a token of the upgraded pair, a side."""
        return self.upgraded.compression * backbone_of(self.pretrained).token_side(self.pretrained.config)

    def base_autoencoder_task(self) -> TokenizerTask:
        """Training of the base autoencoder."""
        config = build.pretrain(self.run).autoencoder
        assert config is not None
        if config.vision is not None:
            self._assume(f"no memory and no time of {config.vision.model}, to which the base latent is aligned")
        distance = None if config.perceptual is None else perceptual_network()
        return build.base_autoencoder_task(self.run, self.base_autoencoder, distance, None)

    def judge_task(self) -> JudgeTask:
        """Training of the judge."""
        config = self.run.recipe.judge
        assert config is not None
        with torch.device("meta"):
            return build.judge_task(build.new_judge(config), config)

    def tokenizer_task(self) -> TokenizerTask:
        """Training of the upgraded autoencoder."""
        config = self.run.recipe.tokenizer
        assert config is not None
        distance = None if config.perceptual is None else perceptual_network()
        if config.generative_alignment is not None:
            self._assume("no memory and no time of the pair's transformer, by which tokenizer aligns the detail")
        return build.tokenizer_task(self.run, self.tokenizer, distance, None)

    def base_transformer_task(self) -> DiffusionTask:
        """Training of the base transformer."""
        config = build.pretrain(self.run).transformer
        assert config is not None
        return build.diffusion_task(self.pretrained, self.base.layout, config)

    def finetuning_task(self, current: Round) -> DiffusionTask:
        """A round of fine-tuning."""
        return build.diffusion_task(self.transformer(current), self.upgraded.layout, current.config)

    def costs(self) -> Iterator[tuple[str, Callable[[], StageCost]]]:
        """(stage, function that counts it) of every stage that takes time, in order."""
        recipe = self.run.recipe
        if recipe.pretrain is not None:
            if recipe.pretrain.autoencoder is not None:
                yield "pretrain.autoencoder", self._base_autoencoder_cost
            if recipe.pretrain.transformer is not None:
                yield "pretrain.cache", self._base_latents_cost
                yield "pretrain.transformer", self._base_transformer_cost
        if recipe.judge is not None:
            yield "judge", self._judge_cost
        if recipe.tokenizer is not None:
            yield "tokenizer", self._tokenizer_cost
        if recipe.cache is not None:
            yield "cache", self._latents_cost
        if recipe.finetune is not None:
            for current in rounds_of(self.run):
                yield current.name, partial(self._finetuning_cost, current)
        if recipe.sample is not None:
            yield "sample: latents", self._drawing_cost
            yield "sample: images", self._decoding_cost

    def _judge_cost(self) -> StageCost:
        config, task = self.run.recipe.judge, self.judge_task()
        assert config is not None
        count, side = self._at_once(config), config.image_size
        with torch.device("meta"):
            targets = {name: torch.empty(count, dtype=torch.long) for name in task.attributes}
            batch = {"fineness": torch.empty(count), **targets, **image_batch(count, side, side)}
        return StageCost(training_cost("judge", task, config, batch), config)

    def _base_autoencoder_cost(self) -> StageCost:
        section = build.pretrain(self.run)
        assert section.autoencoder is not None
        return self._autoencoder_cost(
            "pretrain.autoencoder", self.base_autoencoder_task(), section.autoencoder, section.image_size
        )

    def _tokenizer_cost(self) -> StageCost:
        config = self.run.recipe.tokenizer
        assert config is not None
        return self._autoencoder_cost("tokenizer", self.tokenizer_task(), config, self.run.recipe.image_size)

    def _autoencoder_cost(
        self, stage: str, task: TokenizerTask, config: ReconstructionConfig, size: int
    ) -> StageCost:
        batch = image_batch(self._at_once(config), size, size)
        cost = training_cost(stage, task, config, batch, period=config.adaptive_every)
        return StageCost(cost, config, can_checkpoint=family_of(type(self.base_autoencoder).__name__).can_checkpoint)

    def _base_latents_cost(self) -> StageCost:
        section = build.pretrain(self.run)
        return self._encoding_cost("pretrain.cache", self.base_autoencoder, section.cache, section.image_size)

    def _latents_cost(self) -> StageCost:
        config = self.run.recipe.cache
        assert config is not None
        return self._encoding_cost("cache", self.tokenizer, config, self.run.recipe.image_size)

    def _encoding_cost(self, stage: str, autoencoder: Any, config: CacheConfig, size: int) -> StageCost:
        images = self._num_images * (2 if config.flips else 1)
        at_once, precision = config.batch_size, config.precision
        return StageCost(
            encoding_cost(stage, autoencoder, size, size, at_once=at_once, images=images, precision=precision)
        )

    def _base_transformer_cost(self) -> StageCost:
        section = build.pretrain(self.run)
        assert section.transformer is not None
        side = section.image_size // self.base.compression
        return self._transformer_cost(
            "pretrain.transformer", self.base_transformer_task(), section.transformer, side, 0
        )

    def _finetuning_cost(self, current: Round) -> StageCost:
        side = self.run.recipe.image_size // self.upgraded.compression
        task = self.finetuning_task(current)
        return self._transformer_cost(current.name, task, current.config, side, self._max_length)

    def _transformer_cost(
        self, stage: str, task: DiffusionTask, config: DiffusionConfig, side: int, max_length: int
    ) -> StageCost:
        workload = Workload.of(task.learners["transformer"].network, side, side, max_length)
        cost = training_cost(stage, task, config, workload.batch(self._at_once(config)))
        return StageCost(cost, config, can_checkpoint=True)

    def _drawing_cost(self) -> StageCost:
        config = self.run.recipe.sample
        assert config is not None
        transformer, side = self.pretrained, self.size // self.upgraded.compression
        if self.run.recipe.finetune is not None:
            transformer, _ = build.widened(self.pretrained, self.upgraded, self.size)
        if not self.size:  # a recipe that only draws: the pair's own size
            side = self.pretrained.config.sample_size
        cost = drawing_cost(
            "sample: latents",
            transformer,
            Workload.of(transformer, side, side, self._max_length),
            at_once=min(config.batch_size, config.count),
            images=config.count,
            steps=config.steps,
            guided=config.guidance_scale != 1,
            precision=config.precision,
        )
        return StageCost(cost)

    def _decoding_cost(self) -> StageCost:
        config = self.run.recipe.sample
        assert config is not None
        autoencoder = self.tokenizer if self.run.recipe.has("tokenizer") else self.base_autoencoder
        size = self.size or self.pretrained.config.sample_size * self.base.compression
        at_once = images_at_once(size, size, min(DECODED_AT_ONCE, config.batch_size, config.count))
        return StageCost(
            decoding_cost(
                "sample: images", autoencoder, size, size, at_once=at_once, images=config.count, precision="fp32"
            )
        )

    def _at_once(self, config: LoopConfig) -> int:
        """Images that a process has on its device in a training."""
        return len(Share(config.batch_size, config.accumulation, self.devices).positions(0)[0])

    @cached_property
    def _classes(self) -> int:
        try:
            return max(len(self.run.data.train.class_names), 1)
        except (OSError, ValueError):
            self._assume(f"{_CLASSES:,} classes, because the data cannot be opened")
            return _CLASSES

    @cached_property
    def _num_images(self) -> int:
        try:
            return len(self.run.data.train)
        except (OSError, ValueError):
            self._assume(f"{_IMAGES:,} images, because the data cannot be opened")
            return _IMAGES

    @property
    def _max_length(self) -> int:
        if self.run.recipe.prompts is not None:
            return self.run.recipe.prompts.max_length
        if self.run.recipe.has("prompts"):
            self._assume(f"prompts of {_MAX_LENGTH} tokens, because another run encoded them")
        return _MAX_LENGTH

    def _assume(self, text: str) -> None:
        if text not in self.assumed:
            self.assumed.append(text)
