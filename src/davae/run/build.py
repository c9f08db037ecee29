"""The only place where an entry of a recipe becomes a model's argument, a task or a training set.

Stages call these functions to train and draw, the doctor calls the same ones without weights (under
`torch.device("meta")`) to count what that costs, so that what is counted is what is trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from davae.backbones.adapter import LORA_FILE, load_adapter
from davae.backbones.features import BlockFeatures
from davae.backbones.lora import prepare_lora
from davae.backbones.registry import backbone_of
from davae.backbones.widening import widen_with_report
from davae.caching.prompt_encoding import text_encoders_hash
from davae.core.layout import LatentLayout
from davae.core.names import Init
from davae.core.widen import KeyReport
from davae.data.errors import DataError
from davae.data.image_source import ImageSource
from davae.data.latent_cache import LatentCache
from davae.data.prompt_cache import PromptCache
from davae.data.solids import ATTRIBUTES, attributes_of
from davae.evaluate import lpips
from davae.models.adapter import LatentGeometry, adapt
from davae.models.autoencoder import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from davae.models.identity import nameless, weights_hash
from davae.models.lightningdit import LightningDiT
from davae.models.loading import load_autoencoder
from davae.models.perceptual import LPIPS
from davae.models.saving import verify
from davae.models.solids_judge import SolidsJudge
from davae.recipe import (
    GIVEN_AUTOENCODER,
    BaseAutoencoderConfig,
    BaseTransformerConfig,
    JudgeConfig,
    PretrainConfig,
    TokenizerConfig,
)
from davae.run.accelerator import mean_over_processes
from davae.run.arguments import lightningdit_arguments
from davae.run.rounds import Round
from davae.run.run import Run
from davae.sampling.detail_lag import lagging
from davae.train.conditions import Conditions, Labels, Prompts
from davae.train.diffusion import DiffusionTask
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.generative_alignment import GenerativeAlignment
from davae.train.image_set import ImageSet
from davae.train.judge import JudgeTask
from davae.train.judge_set import JudgeSet
from davae.train.latent_set import LatentSet
from davae.train.objective import PerceptualConfig, ReconstructionConfig
from davae.train.reconstructor import PlainReconstructor, UpgradedReconstructor
from davae.train.tokenizer import Perceptual, TokenizerTask
from davae.train.vision_alignment import VisionAlignment

# Autoencoders


def base_autoencoder(run: Run) -> Any:
    """The pretrained autoencoder that a run upgrades, fp32."""
    return load_autoencoder(run.base_path)


def new_base_autoencoder(config: BaseAutoencoderConfig) -> Any:
    """What section pretrain trains, with random weights."""
    return getattr(diffusers, config.model)(**config.model_config)


def trained_base_autoencoder(run: Run) -> Any:
    """The autoencoder of section pretrain: the trained one, or the one that it is given."""
    given = run.recipe.reuse.get(GIVEN_AUTOENCODER)
    return nameless(load_autoencoder(run.folder.base_autoencoder if given is None else given))


def new_tokenizer(config: TokenizerConfig, base: Any) -> AutoencoderDA:
    """The upgrade of a base autoencoder as training starts from it."""
    return AutoencoderDA.from_base(
        base,
        config.scale,
        config.detail_channels,
        clamp_base_image=config.clamp_base_image,
        base_units=config.base_units,
        warm=config.warm_start,
    )


def trained_tokenizer(run: Run) -> AutoencoderDA:
    """The trained upgrade, in eval mode on the run's device."""
    autoencoder: AutoencoderDA = nameless(load_autoencoder(run.result("tokenizer")))
    return autoencoder.to(run.accelerator.device).eval()


def perceptual(config: PerceptualConfig | None, device: torch.device, say: Callable[[str], None]) -> LPIPS | None:
    """The distance network, if a recipe asks for one; public weights are fetched once, `say` hears of it."""
    if config is None:
        return None
    return LPIPS.from_pretrained(*_weights_of(config), allow_download=True, say=say).to(device)


def perceptual_at_hand(run: Run) -> LPIPS | None:
    """The distance network to measure with, by the recipe's own weights or those of the caches; None without."""
    config = None if run.recipe.tokenizer is None else run.recipe.tokenizer.perceptual
    network = lpips.at_hand() if config is None else lpips.at_hand(*_weights_of(config))
    return None if network is None else network.to(run.accelerator.device)


def _weights_of(config: PerceptualConfig) -> tuple[Path | None, Path | None]:
    """Where the recipe has VGG16 and the linear layers; None are the public ones."""
    return (None if config.vgg is None else Path(config.vgg), None if config.linear is None else Path(config.linear))


def tokenizer_task(
    run: Run, autoencoder: AutoencoderDA, distance: Perceptual | None, generative: GenerativeAlignment | None
) -> TokenizerTask:
    """Training of the upgrade."""
    config = run.recipe.tokenizer
    assert config is not None
    reconstructor = UpgradedReconstructor(autoencoder, config, run.recipe.seed)
    return TokenizerTask(reconstructor, config, distance, _reduce(run), generative)


def generative_alignment(run: Run, autoencoder: AutoencoderDA) -> GenerativeAlignment | None:
    """Alignment of the detail by the pair's transformer, if the recipe asks for it; in bf16 where the training is."""
    tokenizer = run.recipe.tokenizer
    if tokenizer is None or tokenizer.generative_alignment is None:
        return None
    config = tokenizer.generative_alignment
    dtype = torch.bfloat16 if tokenizer.precision == "bf16" else torch.float32
    features = BlockFeatures(run.pair.load_transformer(dtype), config.block)
    features.transformer.to(run.accelerator.device)
    scaling = None if tokenizer.base_units == "scaled" else scaling_of(autoencoder.base_vae)
    return GenerativeAlignment(config, features, autoencoder.layout, scaling, run.recipe.seed)


def base_autoencoder_task(
    run: Run, autoencoder: Any, distance: Perceptual | None, vision: VisionAlignment | None
) -> TokenizerTask:
    """Training of the base autoencoder of section pretrain."""
    config = pretrain(run).autoencoder
    assert config is not None
    return TokenizerTask(
        PlainReconstructor(autoencoder, config, run.recipe.seed, vision), config, distance, _reduce(run)
    )


def vision_alignment(run: Run, autoencoder: Any) -> VisionAlignment | None:
    """Alignment of the base autoencoder's latent to a vision foundation model, if the recipe asks for one."""
    section = pretrain(run)
    if section.autoencoder is None or section.autoencoder.vision is None:
        return None
    adapter = adapt(autoencoder)
    grid = section.image_size // adapter.compression
    return VisionAlignment.load(section.autoencoder.vision, adapter.layout.channels, grid, run.accelerator.device)


def image_set(run: Run, config: ReconstructionConfig, size: int) -> ImageSet:
    """Training images of an autoencoder, at `size` px."""
    return ImageSet(run.data.train, size, run.recipe.seed, flip=config.flip, crop_from=config.crop_from)


def _reduce(run: Run) -> Callable[[Tensor], Tensor]:
    return lambda tensor: mean_over_processes(run.accelerator, tensor)


# Transformers


def pretrain(run: Run) -> PretrainConfig:
    """The section of that name, in a recipe that has it."""
    assert run.recipe.pretrain is not None
    return run.recipe.pretrain


def new_base_transformer(
    config: BaseTransformerConfig, geometry: LatentGeometry, image_size: int, num_classes: int
) -> LightningDiT:
    """What section pretrain trains on an autoencoder's latents of images of `image_size` px, with random weights."""
    return LightningDiT(
        in_channels=geometry.layout.channels,
        sample_size=image_size // geometry.compression,
        num_classes=max(num_classes, 1),
        **lightningdit_arguments(config),
    )


def widened(
    transformer: Any,
    geometry: LatentGeometry,
    image_size: int,
    init: Init = "zero",
    seed: int = 0,
    *,
    consume: bool = False,
) -> tuple[Any, KeyReport]:
    """A pretrained transformer widened for an upgraded autoencoder; what became of its keys.

    Args:
        transformer: of a known family.
        geometry: of the upgraded autoencoder.
        image_size: side of the images that it is to draw, pixels.
        init: how new weights start.
        seed: of random ones.
        consume: whether `transformer` is given up, see `widen_with_report`.
    """
    detail = geometry.layout.detail_channels
    wide, report = widen_with_report(transformer, detail, init, seed, consume=consume)
    if backbone_of(transformer).default_size == "stored":
        wide.register_to_config(sample_size=image_size // geometry.compression)
    return wide, report


def trainable(transformer: Any, current: Round) -> Any:
    """A widened transformer as a round starts from it: with adapters, and with an earlier training's weights.

    Without values (on the meta device) it gets its adapters alone.
    """
    lora, start = current.config.lora, current.start if transformer.device.type != "meta" else None
    is_adapter = start is not None and (start / LORA_FILE).exists()
    if is_adapter and lora is None:
        raise ValueError(
            f"Training of every weight cannot go on from a LoRA; got {start}, and {current.name}.lora is null. Set "
            f"it as the recipe of that run has it."
        )
    if start is not None and not is_adapter:
        _take_weights(transformer, start)
    if lora is not None:
        prepare_lora(transformer, lora, current.seed)
    if start is not None and is_adapter:
        load_adapter(transformer, start, merge=False)
    return transformer


def _take_weights(transformer: Any, start: Path) -> None:
    """All weights of a trained transformer; the size of its images stays behind."""
    folder = start / "transformer" if (start / "transformer").is_dir() else start
    trained = type(transformer).from_pretrained(verify(folder), use_safetensors=True).state_dict()
    expected = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    found = {name: tensor.shape for name, tensor in trained.items()}
    different = sorted(dict(expected.items() ^ found.items()))
    if different:
        raise ValueError(
            f"The transformer in {folder} is not the pair's, widened: {len(different)} weights are of other shapes "
            f"or names, for example {', '.join(different[:3])}. Start from a run of the same pair and channels."
        )
    transformer.load_state_dict(trained)


def diffusion_task(transformer: Any, layout: LatentLayout, config: DiffusionConfig) -> DiffusionTask:
    """Training of a transformer on latents of a layout."""
    return DiffusionTask(transformer.train(), layout, config)


def latent_cache(current: Round, autoencoder: AutoencoderDA) -> LatentCache:
    """The latents of a round, refused where they were not made for it.

    Raises:
        DataError: they are missing, or of another autoencoder, size, source or other buckets.
    """
    run, cache = current.run, LatentCache(current.latents)
    source = current.source.fingerprint
    cache.require(autoencoder=weights_hash(autoencoder), size=run.recipe.image_size, source=source)
    if run.recipe.cache is not None:
        cache.require(buckets=run.data.buckets)
    return cache


def prompt_key(run: Run) -> dict[str, Any]:
    """What a prompt cache must have been made with to serve a run."""
    made_with: dict[str, Any] = {"encoders": text_encoders_hash(run.pair)}
    config = run.recipe.prompts
    return made_with if config is None else {**made_with, "max_length": config.max_length}


def conditions(current: Round, cache: LatentCache) -> Conditions:
    """What the samples of a round are conditioned on.

    Raises:
        DataError: the prompt cache does not fit, or lacks a sample.
    """
    run, dropout, ids = current.run, current.config.condition_dropout, cache.manifest.ids
    if not run.pair.is_text:
        null_class = run.pair.transformer_config["num_classes"]
        return Labels(_labels(current.source, cache), null_class, dropout, current.seed)
    embeddings = PromptCache(current.prompts)
    embeddings.require(**prompt_key(run))
    embeddings.require_ids(ids)
    return Prompts(embeddings, ids, dropout, current.seed)


def _labels(source: ImageSource, cache: LatentCache) -> list[int]:
    """Labels of cached samples, as the set has them now.

    Raises:
        DataError: the set lacks a sample.
    """
    labels = dict(zip(source.ids, source.labels, strict=True))
    missing = [name for name in cache.manifest.ids if name not in labels]
    if missing:
        raise DataError(
            f"The latent cache in {cache.folder} holds {missing[0]!r}, which the data lack ({len(missing)} of "
            f"{len(cache)} samples). Rebuild it with 'davae cache RECIPE'."
        )
    return [labels[name] for name in cache.manifest.ids]


def latent_set(current: Round, cache: LatentCache) -> LatentSet:
    """Training samples of a round."""
    config = current.config
    return LatentSet(cache, conditions(current, cache), current.seed, config.flips, config.batch_size)


def base_latent_set(run: Run, cache: LatentCache, transformer: LightningDiT) -> LatentSet:
    """Training samples of the base transformer of section pretrain."""
    config, seed = pretrain(run).transformer, run.recipe.seed
    assert config is not None
    labels = Labels(_labels(run.data.train, cache), transformer.null_class, config.condition_dropout, seed)
    return LatentSet(cache, labels, seed, config.flips, config.batch_size)


def scheduler(current: Round, layout: LatentLayout) -> Any:
    """The pair's scheduler with a round's shift and lag, for latents of a layout. Training does not need it, drawing
    does.

    Raises:
        ValueError: the detail is to lag, and the pair's scheduler cannot be made to step it apart.
    """
    pretrained, shift = current.run.pair.load_scheduler(), current.config.scheduler_shift
    if shift is not None:
        name = "flow_shift" if "flow_shift" in pretrained.config else "shift"  # the former is DPM-Solver's
        pretrained = type(pretrained).from_config(pretrained.config, **{name: shift})
    return lagging(pretrained, layout, current.config.detail_lag)


# The judge


def new_judge(config: JudgeConfig) -> SolidsJudge:
    """What section judge trains, with random weights."""
    words = {name: list(words) for name, words in ATTRIBUTES.items()}
    return SolidsJudge(words, config.image_size)


def judge_task(judge: SolidsJudge, config: JudgeConfig) -> JudgeTask:
    """Its training."""
    return JudgeTask(judge.train(), config)


def judge_set(run: Run) -> JudgeSet:
    """Its training samples: scenes, and what their captions say."""
    config, source = run.recipe.judge, run.data.train
    assert config is not None
    said = [attributes_of(caption) for caption in source.captions]
    attributes = {name: torch.tensor([each[name] for each in said]) for name in ATTRIBUTES}
    return JudgeSet(source, attributes, config.image_size, config.enlarged_share, run.recipe.seed)
