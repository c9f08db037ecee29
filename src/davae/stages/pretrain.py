"""`davae pretrain`: a base pair from scratch, an autoencoder and then a LightningDiT on its latents."""

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from davae.core.flow import sigma_shift
from davae.core.moments import ChannelMoments
from davae.data.latents import LatentCache
from davae.data.splits import first
from davae.models.faces import compression_of, layout_of, weights_hash
from davae.models.lightningdit import LightningDiT
from davae.recipe import PretrainConfig
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages.encode import DTYPES, encode_source, to_unit
from davae.stages.record import write_provenance
from davae.stages.run import Run, nameless, replace_folder, settings
from davae.stages.training import applied, fit, load_perceptual
from davae.train.diffusion import DiffusionTask, LatentSet
from davae.train.feed import ImageSet
from davae.train.tokenizer import PlainSubject, TokenizerTask

STATISTICS_IMAGES = 4096


def _section(run: Run) -> PretrainConfig:
    assert run.recipe.pretrain is not None
    return run.recipe.pretrain


def autoencoder_inputs(run: Run) -> dict[str, Any]:
    """What the base autoencoder depends on."""
    section = _section(run)
    return {
        "autoencoder": settings(section.autoencoder),
        "image_size": section.image_size,
        "data": run.sources[0].fingerprint,
        "seed": run.recipe.seed,
    }


def train_autoencoder(run: Run) -> None:
    """Train the base autoencoder, measure its latent scale, save it."""
    section, device = _section(run), run.accelerator.device
    config = section.autoencoder
    torch.manual_seed(run.recipe.seed)
    autoencoder = getattr(diffusers, config.model)(**config.model_config)
    factor = compression_of(autoencoder)
    if section.image_size % factor:
        raise ValueError(
            f"pretrain.image_size must be a multiple of the autoencoder's compression {factor}; "
            f"got {section.image_size}"
        )
    source = run.sources[0]
    task = TokenizerTask(
        PlainSubject(autoencoder, config, run.recipe.seed),
        config,
        perceptual=load_perceptual(config.perceptual, run.accelerator.device),
        reduce_gradient=run.reduce_gradient,
    )
    training_set = ImageSet(source, section.image_size, run.recipe.seed)
    averages = fit(run, "pretrain-autoencoder", task, training_set, config, autoencoder_inputs(run))
    with applied(averages["autoencoder"]), torch.no_grad():
        autoencoder.eval()
        squares = ChannelMoments(1)
        sample = first(source, STATISTICS_IMAGES)
        for start in range(0, len(sample), 64):
            images = sample.images(range(start, min(start + 64, len(sample))), section.image_size)
            encoded = autoencoder.encode(to_unit(images).to(device))
            latent = encoded.latent if config.model == "AutoencoderDC" else encoded.latent_dist.mode()
            squares.update(latent.square().mean(dim=1, keepdim=True))
        autoencoder.register_to_config(scaling_factor=float(squares.mean[0].rsqrt()))
        if run.accelerator.is_main_process:
            autoencoder.save_pretrained(run.folder / "pretrain" / ".vae")
            replace_folder(run.folder / "pretrain" / ".vae", run.folder / "pretrain" / "vae")
    run.accelerator.wait_for_everyone()


def latents_inputs(run: Run) -> dict[str, Any]:
    """What the base latents depend on."""
    return {"cache": settings(_section(run).cache), "autoencoder": autoencoder_inputs(run)}


def encode_latents(run: Run) -> None:
    """Cache the base latents of the training images."""
    if run.accelerator.is_main_process:
        section = _section(run)
        encode_source(
            _load_autoencoder(run),
            run.sources[0],
            section.image_size,
            run.folder / "pretrain" / "latents",
            section.cache,
            run.accelerator.device,
            run.observer,
        )
    run.accelerator.wait_for_everyone()


def transformer_inputs(run: Run) -> dict[str, Any]:
    """What the base transformer depends on."""
    return {"transformer": settings(_section(run).transformer), "latents": latents_inputs(run)}


def train_transformer(run: Run) -> None:
    """Train the LightningDiT and save the pair as a pipeline."""
    section = _section(run)
    config = section.transformer
    autoencoder = _load_autoencoder(run)
    cache = LatentCache(run.folder / "pretrain" / "latents")
    cache.require(autoencoder=weights_hash(autoencoder), size=section.image_size)
    layout = layout_of(autoencoder)
    torch.manual_seed(run.recipe.seed)
    transformer = LightningDiT(
        in_channels=layout.channels,
        sample_size=section.image_size // compression_of(autoencoder),
        num_classes=max(len(cache.manifest.class_names), 1),
        **config.model_config,
    )
    task = DiffusionTask(transformer, layout, config, run.recipe.seed)
    training_set = LatentSet(cache, run.recipe.seed, config.flips)
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


def _load_autoencoder(run: Run) -> Any:
    model = getattr(diffusers, _section(run).autoencoder.model)
    return nameless(model.from_pretrained(run.folder / "pretrain" / "vae"))
