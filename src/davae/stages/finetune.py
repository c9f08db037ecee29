"""`davae finetune`: the widened transformer learns the detail channels; what it became is saved."""

from functools import partial
from pathlib import Path
from typing import Any

from davae.backbones.adapter import save_adapter
from davae.backbones.lora import merge_lora
from davae.core.files import folder_hash
from davae.core.layout import LatentLayout
from davae.data.latent_cache import LatentCache
from davae.data.prompt_cache import PromptCache
from davae.models.autoencoder import AutoencoderDA
from davae.models.saving import saving
from davae.run import build, geometry, inputs
from davae.run.checks import check_pair
from davae.run.execute import Stage
from davae.run.fit import applied, fit
from davae.run.paths import RoundName
from davae.run.previews import preview_hooks
from davae.run.rounds import Round
from davae.run.run import Run
from davae.sampling.lightningdit_pipeline import LightningDiTPipeline


def depends_on(run: Run, name: RoundName) -> dict[str, Any]:
    """What the fine-tuned transformer depends on. Its captions may be corrected afterwards, see `STAGE`."""
    current = Round(run, name)
    cache = LatentCache(current.latents)
    result: dict[str, Any] = {
        "finetune": inputs.settings(current.config),
        "cache": {**cache.manifest.key, "samples": len(cache)},
        "tokenizer": folder_hash(run.result("tokenizer")),
        "pair": inputs.transformer(run),
        "seed": current.seed,
    }
    if run.pair.is_text:
        result["prompts"] = {
            name: value for name, value in PromptCache(current.prompts).manifest.key.items() if name != "source"
        }
    else:
        result["cache"]["source"] = current.source.labelled_fingerprint
    if current.start is not None:
        result["start"] = folder_hash(current.start)
    return result


def _trained_on(run: Run, name: RoundName) -> dict[str, Any]:
    """What it depends on, and the captions that it saw."""
    seen = {"captions": inputs.captions(Round(run, name))} if run.pair.is_text else {}
    return {**depends_on(run, name), **seen}


def run(run: Run, name: RoundName) -> None:
    """Widen, train, average, save: a class-conditional pair whole, of a text-to-image pair what was trained."""
    current = Round(run, name)
    config, size = current.config, run.recipe.image_size
    autoencoder = build.trained_tokenizer(run)
    cache = build.latent_cache(current, autoencoder)
    check_pair(run, len(current.source.class_names))
    pretrained, latents = run.pair.load_transformer(), geometry.upgraded(run)
    transformer, report = build.widened(pretrained, latents, size, config.init, current.seed, consume=True)
    run.observer.say(f"widened {type(transformer).__name__}: {report}")
    transformer = build.trainable(transformer, current)
    task = build.diffusion_task(transformer, latents.layout, config)
    training_set = build.latent_set(current, cache)
    hooks = preview_hooks(current, task, autoencoder.to("cpu"))
    averages = fit(run, name, task, training_set, config, depends_on(run, name), hooks)
    with applied(averages["transformer"]):
        if run.is_main:
            _save(current, transformer.eval(), autoencoder)
    run.accelerator.wait_for_everyone()


def _save(current: Round, transformer: Any, autoencoder: AutoencoderDA) -> None:
    run = current.run
    with saving(run.folder.finetuned(current.name), transformer, autoencoder) as folder:
        if run.pair.is_text:
            _save_parts(current, transformer, folder, autoencoder.layout)
        else:
            merged = transformer if current.config.lora is None else merge_lora(transformer)
            scheduler = build.scheduler(current, autoencoder.layout)
            LightningDiTPipeline(autoencoder, merged, scheduler).save_pretrained(folder)


def _save_parts(current: Round, transformer: Any, folder: Path, layout: LatentLayout) -> None:
    if current.config.lora is None:
        transformer.save_pretrained(folder)
    else:
        save_adapter(transformer, folder, layout.detail_channels)
    build.scheduler(current, layout).save_pretrained(folder / "scheduler")


def _stage(round_name: RoundName) -> Stage:
    return Stage(
        name=round_name,
        verb="finetune",
        section=round_name,
        inputs=partial(_trained_on, name=round_name),
        run=partial(run, name=round_name),
        output=lambda run: run.folder.finetuned(round_name),
        trains=True,
        portable=True,
        outlives=("captions",),
    )


STAGE = _stage("finetune")
REALISM = _stage("realism")
