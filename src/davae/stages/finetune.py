"""`davae finetune`: the widened transformer learns the detail channels; the upgraded pair is saved."""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from davae.backbones.upgrade import widen_with_report
from davae.data.latents import LatentCache
from davae.models.faces import weights_hash
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages.run import Run, folder_hash, replace_folder, settings
from davae.stages.training import applied, fit
from davae.train.diffusion import DiffusionTask, LatentSet, merge_lora, prepare_lora


def inputs(run: Run) -> dict[str, Any]:
    """What the fine-tuned transformer depends on."""
    cache = LatentCache(run.path_of("cache"))
    return {
        "finetune": settings(run.recipe.finetune),
        "cache": {**cache.manifest.key, "samples": len(cache)},
        "tokenizer": folder_hash(run.path_of("tokenizer")),
        "pair": folder_hash(run.pair_path / "transformer"),
        "seed": run.recipe.seed,
    }


def work(run: Run) -> None:
    """Widen, train, average, save the pair as a pipeline."""
    config = run.recipe.finetune
    assert config is not None
    autoencoder = run.tokenizer()
    cache = LatentCache(run.path_of("cache"))
    cache.require(
        autoencoder=weights_hash(autoencoder), size=run.recipe.image_size, source=run.sources[0].fingerprint
    )
    run.check_pair(autoencoder.config.scale, len(cache.manifest.class_names))
    layout = cache.manifest.layout
    transformer, report = widen_with_report(
        run.pair.transformer, layout.detail_channels, config.init, run.recipe.seed
    )
    run.observer.say(f"widened {type(transformer).__name__}: {report}")
    if config.lora is not None:
        prepare_lora(transformer, config.lora, run.recipe.seed)
    task = DiffusionTask(transformer.train(), layout, config, run.recipe.seed)
    training_set = LatentSet(cache, run.recipe.seed, config.flips)
    averages = fit(run, "finetune", task, training_set, config, inputs(run))
    with applied(averages["transformer"]):
        if run.accelerator.is_main_process:
            merged = transformer if config.lora is None else merge_lora(transformer)
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(run.pair.scheduler.config)
            pair = LightningDiTPipeline(autoencoder, merged.eval(), scheduler)
            pair.save_pretrained(run.folder / ".pipeline")
            replace_folder(run.folder / ".pipeline", run.folder / "pipeline")
