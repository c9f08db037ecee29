"""`davae pretrain`, third: a LightningDiT on the base latents, and with its autoencoder a pair."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from davae.core.flow import sigma_shift
from davae.core.precision import DTYPES
from davae.data.latent_cache import LatentCache
from davae.models.adapter import adapt
from davae.models.identity import weights_hash
from davae.models.saving import saving
from davae.run import build, inputs
from davae.run.execute import Stage
from davae.run.fit import applied, fit
from davae.run.record import write_provenance
from davae.run.run import Run
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline

NAME = "pretrain-transformer"
_TRAININGS = ("pretrain-autoencoder", NAME)


def depends_on(run: Run) -> dict[str, Any]:
    """What the base transformer depends on."""
    return {
        "transformer": inputs.settings(build.pretrain(run).transformer),
        "latents": inputs.base_latents(run, run.data.train.labelled_fingerprint),
    }


def run(run: Run) -> None:
    """Train, average, save the pair as a pipeline."""
    section = build.pretrain(run)
    config = section.transformer
    assert config is not None
    autoencoder = build.trained_base_autoencoder(run)
    cache = LatentCache(run.folder.base_latents)
    cache.require(autoencoder=weights_hash(autoencoder), size=section.image_size)
    torch.manual_seed(run.recipe.seed)
    geometry = adapt(autoencoder).geometry
    transformer = build.new_base_transformer(config, geometry, section.image_size, len(run.data.train.class_names))
    task = build.diffusion_task(transformer, geometry.layout, config)
    training_set = build.base_latent_set(run, cache, transformer)
    averages = fit(run, NAME, task, training_set, config, depends_on(run))
    with applied(averages["transformer"]):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=sigma_shift(config.time_shift))
        if run.is_main:
            _save(run, LightningDiTPipeline(autoencoder, transformer.eval(), scheduler))
    run.accelerator.wait_for_everyone()


def _save(run: Run, pair: LightningDiTPipeline) -> None:
    dtype = build.pretrain(run).save_dtype
    for model in (pair.vae, pair.transformer):
        _cast(model, DTYPES.get(dtype, torch.float16))
    if dtype == "float8":
        for weight in pair.transformer.blocks.parameters():
            if weight.ndim == 2:
                weight.data = weight.data.to(torch.float8_e4m3fn)
    with saving(run.folder.base_pair, pair.vae, pair.transformer) as folder:
        pair.save_pretrained(folder)
        write_provenance(folder, run.recipe.as_dict(), run.folder.stats, _TRAININGS)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast all but what the model keeps in float32 (rotary tables), which `to` would round as well."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not kept & set(name.split(".")):
            tensor.data = tensor.data.to(dtype)


STAGE = Stage(
    name=NAME,
    verb="pretrain",
    section="pretrain.transformer",
    inputs=depends_on,
    run=run,
    output=lambda run: run.folder.base_pair,
    trains=True,
    portable=True,
)
