"""`davae pretrain`: a base pair from scratch, an autoencoder (or a given one), then (or not) a LightningDiT on it."""

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from davae.core.flow import sigma_shift
from davae.core.moments import ChannelMoments
from davae.data.cache_files import Part
from davae.data.latents import LatentCache
from davae.data.source import ImageSource
from davae.data.splits import first
from davae.models.faces import compression_of, layout_of, raw_moments, weights_hash
from davae.models.lightningdit import LightningDiT
from davae.models.loading import autoencoder_folder, load_autoencoder
from davae.models.scaling import scaling_of
from davae.recipe import GIVEN_AUTOENCODER, BaseAutoencoderConfig, BaseTransformerConfig, PretrainConfig
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages.encode import DTYPES, encode_source, to_unit
from davae.stages.portions import images_at_once
from davae.stages.record import write_provenance
from davae.stages.run import Run, folder_hash, nameless, replace_folder, settings
from davae.stages.training import applied, fit, load_perceptual
from davae.train.conditions import Labels
from davae.train.diffusion import DiffusionTask
from davae.train.feed import ImageSet
from davae.train.latent_set import LatentSet
from davae.train.subjects import PlainSubject
from davae.train.tokenizer import TokenizerTask
from davae.train.vision import VisionAlignment

STATISTICS_IMAGES = 4096


def _section(run: Run) -> PretrainConfig:
    assert run.recipe.pretrain is not None
    return run.recipe.pretrain


def _autoencoder(run: Run) -> BaseAutoencoderConfig:
    config = _section(run).autoencoder
    assert config is not None
    return config


def _transformer(run: Run) -> BaseTransformerConfig:
    config = _section(run).transformer
    assert config is not None
    return config


def autoencoder_inputs(run: Run) -> dict[str, Any]:
    """What the base autoencoder depends on."""
    section = _section(run)
    return {
        "autoencoder": settings(_autoencoder(run)),
        "image_size": section.image_size,
        "data": run.sources[0].fingerprint,
        "seed": run.recipe.seed,
    }


def train_autoencoder(run: Run) -> None:
    """Train the base autoencoder, measure its latent scale, save it."""
    section, config = _section(run), _autoencoder(run)
    torch.manual_seed(run.recipe.seed)
    autoencoder = getattr(diffusers, config.model)(**config.model_config)
    _check_size(section.image_size, autoencoder)
    source = run.sources[0]
    task = TokenizerTask(
        PlainSubject(autoencoder, config, run.recipe.seed, _vision(run, autoencoder)),
        config,
        perceptual=load_perceptual(config.perceptual, run.accelerator.device, run.observer.say),
        reduce=run.reduce,
    )
    training_set = ImageSet(source, section.image_size, run.recipe.seed, flip=config.flip, crop_from=config.crop_from)
    averages = fit(run, "pretrain-autoencoder", task, training_set, config, autoencoder_inputs(run))
    with applied(averages["autoencoder"]), torch.no_grad():
        autoencoder.eval()
        statistics = _latent_statistics(autoencoder, first(source, STATISTICS_IMAGES), section.image_size)
        autoencoder.register_to_config(**statistics)
        if run.accelerator.is_main_process:
            temporary = run.folder / "pretrain" / ".vae"
            autoencoder.save_pretrained(temporary)
            stats = run.folder / "stats.jsonl"
            write_provenance(temporary, run.recipe.as_dict(), stats, ("pretrain-autoencoder",))
            replace_folder(temporary, run.folder / "pretrain" / "vae")
    run.accelerator.wait_for_everyone()


def _check_size(size: int, autoencoder: Any) -> None:
    factor = compression_of(autoencoder)
    if size % factor:
        raise ValueError(
            f"pretrain.image_size must be a multiple of the autoencoder's compression {factor}; got {size}"
        )


def _vision(run: Run, autoencoder: Any) -> VisionAlignment | None:
    vision = _autoencoder(run).vision
    if vision is None:
        return None
    grid = _section(run).image_size // compression_of(autoencoder)
    return VisionAlignment.load(vision, layout_of(autoencoder).channels, grid, run.accelerator.device)


def _latent_statistics(autoencoder: Any, sample: ImageSource, size: int) -> dict[str, Any]:
    """Config entries that give the transformer latents of about unit size.

    AutoencoderKL has a mean and a deviation for each channel, as LightningDiT's training has (its channels are
    not centred); AutoencoderDC has one factor, taken from the root mean square.
    """
    moments = ChannelMoments(layout_of(autoencoder).channels)
    portion = images_at_once(size, size, limit=64)
    for start in range(0, len(sample), portion):
        images = sample.images(range(start, min(start + portion, len(sample))), size)
        moments.update(raw_moments(autoencoder, to_unit(images).to(autoencoder.device))[0])
    if "latents_std" not in autoencoder.config:
        return {"scaling_factor": float((moments.mean.square() + moments.var).mean().rsqrt())}
    mean, std = moments.mean.tolist(), moments.var.sqrt().tolist()
    # A factor of 1: diffusers multiplies with it beside the deviations.
    return {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}


def latents_inputs(run: Run) -> dict[str, Any]:
    """What the base latents depend on."""
    section, given = _section(run), _given(run)
    made: dict[str, Any] = {"cache": settings(section.cache)}
    if given is None:
        return made | {"autoencoder": autoencoder_inputs(run)}
    data = {"image_size": section.image_size, "data": run.sources[0].fingerprint}
    return made | {"autoencoder": folder_hash(autoencoder_folder(given)), **data}


def encode_latents(run: Run) -> None:
    """Cache the base latents of the training images, each process its share."""
    section, autoencoder, accelerator = _section(run), _load_autoencoder(run), run.accelerator
    _check_size(section.image_size, autoencoder)
    scaling_of(autoencoder)  # refused now if it declares none: the transformer would not know what it sees
    encode_source(
        autoencoder,
        run.sources[0],
        section.image_size,
        run.folder / "pretrain" / "latents",
        section.cache,
        accelerator.device,
        run.observer,
        part=Part(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone),
    )


def transformer_inputs(run: Run) -> dict[str, Any]:
    """What the base transformer depends on."""
    return {"transformer": settings(_transformer(run)), "latents": latents_inputs(run)}


def train_transformer(run: Run) -> None:
    """Train the LightningDiT and save the pair as a pipeline."""
    section = _section(run)
    config = _transformer(run)
    autoencoder = _load_autoencoder(run)
    cache = LatentCache(run.folder / "pretrain" / "latents")
    cache.require(autoencoder=weights_hash(autoencoder), size=section.image_size)
    layout = layout_of(autoencoder)
    torch.manual_seed(run.recipe.seed)
    transformer = LightningDiT(
        in_channels=layout.channels,
        sample_size=section.image_size // compression_of(autoencoder),
        num_classes=max(len(cache.manifest.class_names), 1),
        **config.arguments,
    )
    task = DiffusionTask(transformer, layout, config)
    labels = Labels(cache.manifest.labels, transformer.null_class, config.condition_dropout, run.recipe.seed)
    training_set = LatentSet(cache, labels, run.recipe.seed, config.flips, config.batch_size)
    averages = fit(run, "pretrain-transformer", task, training_set, config, transformer_inputs(run))
    with applied(averages["transformer"]):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=sigma_shift(config.time_shift))
        pair = LightningDiTPipeline(autoencoder, transformer.eval(), scheduler)
        if run.accelerator.is_main_process:
            _save_pair(run, pair)
    run.accelerator.wait_for_everyone()


def _save_pair(run: Run, pair: LightningDiTPipeline) -> None:
    temporary = run.folder / "pretrain" / ".pipeline"
    dtype = _section(run).save_dtype
    for model in (pair.vae, pair.transformer):
        _cast(model, DTYPES.get(dtype, torch.float16))
    if dtype == "float8":
        for weight in pair.transformer.blocks.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.to(torch.float8_e4m3fn)
    pair.save_pretrained(temporary)
    trainings = ("pretrain-autoencoder", "pretrain-transformer")
    write_provenance(temporary, run.recipe.as_dict(), run.folder / "stats.jsonl", trainings)
    replace_folder(temporary, run.folder / "pretrain" / "pipeline")


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast all but what the model keeps in float32 (rotary tables), which `to` would round as well."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


def _given(run: Run) -> str | None:
    """Where the autoencoder is, if this run does not train it."""
    return run.recipe.reuse.get(GIVEN_AUTOENCODER)


def _load_autoencoder(run: Run) -> Any:
    given = _given(run)
    if given is not None:
        return nameless(load_autoencoder(given))
    model = getattr(diffusers, _autoencoder(run).model)
    return nameless(model.from_pretrained(run.folder / "pretrain" / "vae"))
