"""`davae finetune`: the widened transformer learns the detail channels; what it became is saved."""

from pathlib import Path
from typing import Any

from davae.backbones.lora import LORA_FILE, load_adapter, merge_lora, prepare_lora, save_adapter
from davae.data.latents import LatentCache
from davae.data.prompts import PromptCache
from davae.models.autoencoder import AutoencoderDA
from davae.models.faces import weights_hash
from davae.sampling.pipeline import LightningDiTPipeline
from davae.stages import prompts
from davae.stages.pairs import widened
from davae.stages.phase import Phase, PhaseName
from davae.stages.preview import preview_hooks
from davae.stages.run import Run, folder_hash, replace_folder, settings
from davae.stages.training import applied, fit
from davae.train.conditions import Conditions, Labels, Prompts
from davae.train.diffusion import DiffusionTask
from davae.train.latent_set import LatentSet


def inputs(run: Run, phase: PhaseName = "finetune") -> dict[str, Any]:
    """What the fine-tuned transformer depends on."""
    one = Phase(run, phase)
    cache = LatentCache(one.latents)
    result = {
        "finetune": settings(one.config),
        "cache": {**cache.manifest.key, "samples": len(cache)},
        "tokenizer": folder_hash(run.path_of("tokenizer")),
        "pair": folder_hash(run.pair.folder(["transformer"]) / "transformer"),
        "seed": one.seed,
    }
    if run.pair.is_text:
        result["prompts"] = PromptCache(one.prompts).manifest.key
        if "prompts" not in run.recipe.reuse:
            # It has prompts of the preview, which change no weight; the captions are in the cache's source already.
            del result["prompts"]["source"]
    if one.start is not None:
        result["start"] = folder_hash(one.start)
    return result


def work(run: Run, phase: PhaseName = "finetune") -> None:
    """Widen, train, average, save: a class-conditional pair whole, of a text-to-image pair what was trained."""
    one = Phase(run, phase)
    config, seed = one.config, one.seed
    autoencoder, cache = run.tokenizer(), LatentCache(one.latents)
    cache.require(autoencoder=weights_hash(autoencoder), size=run.recipe.image_size, source=one.source.fingerprint)
    if run.recipe.cache is not None:
        cache.require(buckets=run.buckets)
    run.check_pair(autoencoder.config.scale, len(cache.manifest.class_names))
    transformer, report = widened(run.pair, autoencoder, run.recipe.image_size, config.init, seed)
    run.observer.say(f"widened {type(transformer).__name__}: {report}")
    transformer = _prepared(transformer, one)
    task = DiffusionTask(transformer.train(), cache.manifest.layout, config)
    conditions = _conditions(transformer, one, cache)
    training_set = LatentSet(cache, conditions, seed, config.flips, config.batch_size)
    hooks = preview_hooks(one, task, autoencoder.to("cpu"), _scheduler(one))
    averages = fit(run, phase, task, training_set, config, inputs(run, phase), hooks)
    with applied(averages["transformer"]):
        if run.accelerator.is_main_process:
            _save(one, transformer.eval(), autoencoder)
    run.accelerator.wait_for_everyone()


def _prepared(transformer: Any, phase: Phase) -> Any:
    """The widened transformer as training starts from it: with adapters, and with an earlier training's weights."""
    lora, start = phase.config.lora, phase.start
    is_adapter = start is not None and (start / LORA_FILE).exists()
    if is_adapter and lora is None:
        raise ValueError(
            f"Training of every weight cannot go on from a LoRA; got {start}, and {phase.name}.lora is null. Set it "
            f"as the recipe of that run has it."
        )
    if start is not None and not is_adapter:
        _take_weights(transformer, start)
    if lora is not None:
        prepare_lora(transformer, lora, phase.seed)
    if is_adapter:
        load_adapter(transformer, start, merge=False)
    return transformer


def _take_weights(transformer: Any, start: Path) -> None:
    """All weights of a trained transformer; the size of its images stays behind."""
    folder = start / "transformer" if (start / "transformer").is_dir() else start
    trained = type(transformer).from_pretrained(folder, use_safetensors=True).state_dict()
    own = {name: tensor.shape for name, tensor in transformer.state_dict().items()}
    different = sorted(dict(own.items() ^ {name: tensor.shape for name, tensor in trained.items()}.items()))
    if different:
        raise ValueError(
            f"The transformer in {folder} is not the pair's, widened: {len(different)} weights are of other shapes "
            f"or names, for example {', '.join(different[:3])}. Start from a run of the same pair and channels."
        )
    transformer.load_state_dict(trained)


def _conditions(transformer: Any, phase: Phase, cache: LatentCache) -> Conditions:
    dropout, seed, manifest = phase.config.condition_dropout, phase.seed, cache.manifest
    if not phase.run.pair.is_text:
        return Labels(manifest.labels, transformer.null_class, dropout, seed)
    embeddings = PromptCache(phase.prompts)
    embeddings.require(**prompts.expected(phase.run))
    embeddings.require_ids(manifest.ids)
    return Prompts(embeddings, manifest.ids, dropout, seed)


def _scheduler(phase: Phase) -> Any:
    """The pair's scheduler with the recipe's shift; training does not need it, drawing does."""
    scheduler, shift = phase.run.pair.load_scheduler(), phase.config.scheduler_shift
    return scheduler if shift is None else type(scheduler).from_config(scheduler.config, shift=shift)


def _save(phase: Phase, transformer: Any, autoencoder: AutoencoderDA) -> None:
    run, name = phase.run, phase.run.upgraded_name
    temporary, target = phase.folder / f".{name}", phase.folder / name
    if run.pair.is_text:
        _save_parts(phase, transformer, temporary, autoencoder.layout.detail_channels)
    else:
        merged = transformer if phase.config.lora is None else merge_lora(transformer)
        LightningDiTPipeline(autoencoder, merged, _scheduler(phase)).save_pretrained(temporary)
    replace_folder(temporary, target)


def _save_parts(phase: Phase, transformer: Any, folder: Path, detail_channels: int) -> None:
    if phase.config.lora is None:
        transformer.save_pretrained(folder)
    else:
        save_adapter(transformer, folder, detail_channels)
    _scheduler(phase).save_pretrained(folder / "scheduler")
