"""`davae export`: the complete upgraded pipeline as one folder that stock diffusers loads, and a card about it."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from davae.backbones.public import public_model
from davae.backbones.registry import backbone_of
from davae.core.files import folder_hash, sweep
from davae.core.lock import locked
from davae.core.names import DtypeName
from davae.core.precision import DTYPES, dtype_name
from davae.evaluate.results import Results
from davae.models.autoencoder import AutoencoderDA
from davae.models.saving import saving
from davae.report.card import CardFacts, model_card
from davae.report.licences import AUTO, licence_of, notice
from davae.run import pipelines
from davae.run.record import write_provenance
from davae.run.run import Run

CARD, NOTICE, GALLERY = "README.md", "NOTICE", "samples.png"
_LICENCE_FILES = ("LICENSE*", "LICENCE*")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an exported pipeline comes from, as far as it is known.

    Args:
        name: of the model on its card.
        base_model: hub id of the pretrained pair.
        licence: see `report.licences.licence_of`.
        licence_text: file with the licence's text, which is copied.
        recipe: of the run.
        stats: stats.jsonl of the run.
        results: of the run.
        gallery: an image of samples, which is copied.
    """

    name: str
    base_model: str | None = None
    licence: str = AUTO
    licence_text: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    stats: Path | None = None
    results: Results | None = None
    gallery: Path | None = None


def export_run(
    run: Run,
    target: Path,
    *,
    dtype: DtypeName = "bfloat16",
    licence: str = AUTO,
    base_model: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Assemble the pipeline that a finished run made, and write it to `target`.

    Args:
        run: its fine-tuning is done.
        target: a new folder.
        dtype: of the saved weights, the autoencoder's too.
        licence: "auto" recognises derivatives of Stable Diffusion 3 by their pipeline; see `licence_of`.
        base_model: hub id of the pretrained pair; None takes the one that the run was given, if it was one.
        overwrite: whether a pipeline that lies there may be replaced.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the target is taken, or the licence or the dtype is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"Cannot save in {dtype!r}; allowed: {', '.join(DTYPES)}.")
    _expect_free(target, overwrite)
    _expect_other(run, target)
    base_model = base_model or _base_model(run)
    licence_of(licence, run.pair.pipeline_name, base_model)  # refused before anything large is loaded
    pipeline = pipelines.upgraded(run, DTYPES[dtype])
    origin = Origin(
        name=run.recipe.name,
        base_model=base_model,
        licence=licence,
        licence_text=_licence_text(run),
        recipe=run.recipe.as_dict(),
        stats=run.folder.stats,
        results=_results(run),
        gallery=_gallery(run),
    )
    export(pipeline, target, origin, overwrite)
    run.observer.say(f"exported to {target}")
    if (target / NOTICE).exists() and origin.licence_text is None:
        run.observer.say(f"Put the licence's text into {target} before you share it; {NOTICE} says where it is.")
    return target


def export(pipeline: Any, target: Path, origin: Origin, overwrite: bool = False) -> None:
    """Write a pipeline as it is, with safetensors in shards as diffusers cuts them, and the files about it.

    It is written under a temporary name and renamed. What is published names no path of this machine.

    Args:
        pipeline: assembled, LoRA merged, in the dtype that is to be saved.
        target: a new folder.
        origin: see `Origin`.
        overwrite: whether a pipeline that lies there may be replaced.

    Raises:
        LockedError: another command exports there.
        ValueError: the target is taken, or the licence is unknown.
    """
    _expect_free(target, overwrite)
    if not isinstance(pipeline.vae, AutoencoderDA):
        raise ValueError(
            f"Cannot export this {type(pipeline).__name__}: its autoencoder is a {type(pipeline.vae).__name__}, "
            f"allowed is an AutoencoderDA. Upgrade it first."
        )
    recipe = _published(origin.recipe)
    facts = _facts(pipeline, origin, recipe)
    target = target.absolute()
    with (
        locked(target.with_name(f".{target.name}.lock"), f"Folder {target}"),
        saving(target, pipeline.vae, pipeline.transformer) as folder,
    ):
        _expect_free(target, overwrite)  # another export may have come first
        sweep(target.parent)
        pipeline.save_pretrained(folder, safe_serialization=True)
        _forget_paths(folder)
        write_provenance(folder, recipe, origin.stats, ("tokenizer", "finetune", "realism"))
        _write_about(folder, facts, origin)


def _write_about(folder: Path, facts: CardFacts, origin: Origin) -> None:
    if origin.gallery is not None:
        shutil.copyfile(origin.gallery, folder / GALLERY)
    if origin.licence_text is not None:
        shutil.copyfile(origin.licence_text, folder / origin.licence_text.name)
    if facts.licence is not None and facts.licence.notice:
        (folder / NOTICE).write_text(notice(facts.licence, facts.base_model, facts.changes), encoding="utf-8")
    (folder / CARD).write_text(model_card(facts), encoding="utf-8")


def _expect_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ValueError(f"Cannot export to {target}: it is a file. Name a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(
            f"Cannot export to {target}: the folder is not empty. Name a new one, or pass --overwrite to replace it."
        )
    if not (target / "model_index.json").is_file():
        raise ValueError(
            f"Cannot export to {target}: it holds something else than a pipeline, and all of it would be replaced. "
            f"Name a new folder."
        )


def _expect_other(run: Run, target: Path) -> None:
    """An export is made of these folders and may not replace them."""
    for folder in (Path(run.pair_source), run.finetuned()):
        if target.resolve() == folder.resolve():
            raise ValueError(
                f"Cannot export to {target}: the export is made from what lies there. Name a new folder."
            )


def _facts(pipeline: Any, origin: Origin, recipe: Mapping[str, Any]) -> CardFacts:
    vae, config, backbone = pipeline.vae, pipeline.transformer.config, backbone_of(pipeline.transformer)
    size = recipe.get("image_size") or None
    if size is None and backbone.default_size != "asked":
        size = config.sample_size * vae.compression
    side = None if size is None else size // vae.compression
    name = type(pipeline).__name__
    return CardFacts(
        name=origin.name,
        pipeline_class=name,
        base_model=origin.base_model,
        layout=vae.layout,
        scale=vae.config.scale,
        compression=vae.compression,
        image_size=size,
        tokens=None if side is None else backbone.num_tokens(config, side, side),
        dtype=dtype_name(pipeline.transformer.dtype),
        licence=licence_of(origin.licence, name, origin.base_model),
        call=_call(pipeline, recipe, size),
        recipe=recipe,
        results=origin.results,
        gallery=None if origin.gallery is None else GALLERY,
    )


def _call(pipeline: Any, recipe: Mapping[str, Any], size: int | None) -> dict[str, str]:
    """Arguments of a first call, as source code: what the run drew with, and what the family cannot do without."""
    backbone = backbone_of(pipeline.transformer)
    arguments = {backbone.call_argument: '"a lighthouse at dawn"' if backbone.is_text else "[0]"}
    if backbone.default_size == "asked" and size is not None:
        arguments |= {"height": str(size), "width": str(size)}
    settings = recipe.get("sample") or (recipe.get("finetune") or {}).get("preview") or {}
    for argument, setting in (("num_inference_steps", "steps"), ("guidance_scale", "guidance_scale")):
        if setting in settings:
            arguments[argument] = str(settings[setting])
    if not backbone.is_text and backbone.takes_interval and "guidance_interval" in settings:
        arguments["guidance_interval"] = str(tuple(settings["guidance_interval"]))
    if recipe.get("prompts") and "max_length" in recipe["prompts"]:
        arguments["max_sequence_length"] = str(recipe["prompts"]["max_length"])
    return arguments | {name: str(value) for name, value in backbone.call_with.items()}


def _base_model(run: Run) -> str | None:
    """Hub id of the pair: the recipe's, or of a local copy the published model that it says it is."""
    source = run.pair_source
    if _HUB_NAME.fullmatch(source) and not Path(source).exists():
        return source
    stored = str(run.pair.index.get("_name_or_path", ""))
    return stored if public_model(stored) is not None else None


def _licence_text(run: Run) -> Path | None:
    """A licence file that lies beside the pretrained pair."""
    folder = run.pair.folder()
    return next((path for pattern in _LICENCE_FILES for path in sorted(folder.glob(pattern)) if path.is_file()), None)


def _results(run: Run) -> Results | None:
    """The run's measurements, if they were made of what is exported."""
    path = run.folder.results
    return Results.load(path) if path.exists() and _is_of_this(run, "evaluate") else None


def _gallery(run: Run) -> Path | None:
    path = run.folder.gallery
    return path if path.exists() and _is_of_this(run, "sample") else None


def _is_of_this(run: Run, stage: str) -> bool:
    """Whether a finished stage looked at the weights that lie there now."""
    entry = run.record.stage(stage)
    if entry is None:
        return False
    folders = {"pipeline": run.finetuned(), "tokenizer": run.result("tokenizer")}
    seen = {name: entry["inputs"][name] for name in folders if name in entry["inputs"]}
    return all(value == folder_hash(folders[name]) for name, value in seen.items())


def _published(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for other people: of a path on this machine only the last part is left."""

    def publish(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: publish(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [publish(item) for item in value]
        return _last_part(value) if isinstance(value, str) and _is_local_path(value) else value

    return publish(recipe)


def _is_local_path(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith(("~", ".."))


def _last_part(text: str) -> str:
    return PureWindowsPath(text).name  # splits at both kinds of slash


def _forget_paths(folder: Path) -> None:
    """Take out of the saved configs where the parts were loaded from: it is nobody's business and loads nothing."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and (found := {"_name_or_path", "name_or_path"} & content.keys()):
            kept = {key: value for key, value in content.items() if key not in found}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
