"""Files in, diffusers folder out: which layout it is, what it needs, and a folder written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from davae.convert import dit, imagenet, ldm, lightningdit, sd3, tiny
from davae.convert.keys import ConversionError, ConversionReport, fit, some
from davae.convert.kl import NORM_GROUPS
from davae.convert.source import Source, read_source, read_statistics
from davae.convert.training import read_weights

KINDS: dict[str, Any] = {
    **{layout.KIND: layout for layout in (sd3, imagenet, ldm, tiny, lightningdit)},
    **dict.fromkeys(dit.KINDS, dit),
}
"""Known layouts, autoencoders, then transformers; the first that recognises the keys is taken."""
OPTIONS = {
    ldm.KIND: ("statistics", "scaling_factor", "shift_factor"),
    imagenet.KIND: ("base", "statistics"),
    sd3.KIND: ("statistics",),
    tiny.KIND: (),
    lightningdit.KIND: ("num_attention_heads", "qk_norm"),
    **dict.fromkeys(dit.KINDS, ("num_attention_heads",)),
}
"""Options that a layout takes."""
AUTO = "auto"


def convert(
    sources: Sequence[Path],
    folder: Path,
    kind: str = AUTO,
    base: Path | None = None,
    statistics: Path | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    norm_num_groups: int = NORM_GROUPS,
    weights: str | None = None,
    num_attention_heads: int | None = None,
    qk_norm: bool | None = None,
    pack: Callable[[Any], tuple[Any, str]] | None = None,
) -> ConversionReport:
    """Convert a checkpoint to a diffusers folder with `conversion.json` beside the model.

    Args:
        sources: one file; for tiny autoencoders encoder and decoder, in any order.
        folder: to be written; it must not exist, or be empty.
        kind: layout of the source, one of `KINDS`, or "auto".
        base: for "davae-imagenet": the VA-VAE it was trained over, its checkpoint or its diffusers folder.
        statistics: file with mean and standard deviation a latent channel, see the layouts.
        scaling_factor: for "ldm", where there are no statistics.
        shift_factor: for "ldm", beside the scaling factor.
        norm_num_groups: groups of the group norms, which weights do not show.
        weights: "ema" or "model", where a file has both; None prefers "ema".
        num_attention_heads: of a transformer, where its weights do not show it.
        qk_norm: for "lightningdit": what the caller expects; other weights are refused.
        pack: makes of the model what is saved in its place, for example a pipeline, and a note on it.

    Raises:
        ConversionError: nothing was written; the message says why.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConversionError(f"{folder} exists already. Name a new folder, or remove that one first.")
    read, which = zip(*(read_weights(path, weights) for path in sources), strict=True)
    kind = detect(read[0]) if kind == AUTO else kind
    given = {
        "base": base,
        "statistics": statistics,
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "num_attention_heads": num_attention_heads,
        "qk_norm": qk_norm,
    }
    _check_options(kind, read, given)
    model, report = _converted(kind, read, given, norm_num_groups)
    saved, *packed = (model,) if pack is None else pack(model)
    report = replace(
        report,
        dropped={**report.dropped, **{k: v for source in read for k, v in source.dropped.items()}},
        notes=(*(note for notes in which for note in notes), *report.notes, *packed),
    )
    origins = [source.fingerprint() for source in read]
    _write(saved, {"davae": version("davae"), "sources": origins, **asdict(report)}, folder)
    return report


def detect(source: Source) -> str:
    """The layout of a checkpoint, by its keys.

    Raises:
        ConversionError: none of the known ones, or one that several kinds share.
    """
    for kind, layout in KINDS.items():
        if layout.recognises(source.tensors):
            return dit.kind_of(source.tensors) if layout is dit else kind
    raise ConversionError(
        f"{source.path} has no layout that davae knows ({', '.join(KINDS)}). Keys seen: {some(list(source.tensors))}."
    )


def load_base(path: Path, norm_num_groups: int = NORM_GROUPS) -> AutoencoderKL:
    """A base autoencoder in the dtype of its file: an LDM checkpoint, a diffusers folder, or a pipeline's.

    Raises:
        ConversionError: it is none of them.
    """
    if not path.is_dir():
        return ldm.convert_ldm(read_source(path).tensors, norm_num_groups=norm_num_groups)[0]
    folder = path / "vae" if (path / "vae").is_dir() else path
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConversionError(f"The base {path} is no diffusers folder: {config_file.name} is missing.")
    class_name = json.loads(config_file.read_text()).get("_class_name")
    if class_name != "AutoencoderKL":
        raise ConversionError(
            f"The base {path} is of class {class_name}; the ImageNet branch stands on AutoencoderKL."
        )
    state = read_source(folder / "diffusion_pytorch_model.safetensors").tensors
    with torch.device("meta"):
        model = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return fit("diffusers", model, state, {key: key for key in state}, {})[0]


def _check_options(kind: str, read: Sequence[Source], given: Mapping[str, Any]) -> None:
    if kind not in KINDS:
        raise ConversionError(f"Unknown kind {kind!r}; allowed: {', '.join((AUTO, *KINDS))}.")
    surplus = [name for name, value in given.items() if value is not None and name not in OPTIONS[kind]]
    if surplus:
        takes = ", ".join(OPTIONS[kind]) or "none"
        raise ConversionError(f"'{kind}' weights take no {' and no '.join(surplus)}; their options: {takes}.")
    strangers = [source for source in read if not KINDS[kind].recognises(source.tensors)]
    if strangers:
        seen = some(list(strangers[0].tensors))
        raise ConversionError(f"{strangers[0].path} is not of the kind '{kind}'. Keys seen: {seen}.")
    wanted = 2 if kind == tiny.KIND else 1
    if len(read) != wanted:
        names = ", ".join(source.path.name for source in read)
        hint = "an encoder and a decoder, two files" if wanted == 2 else "one file"
        raise ConversionError(f"'{kind}' weights are {hint}; got {names}.")
    if kind == imagenet.KIND and given["base"] is None:
        raise ConversionError(
            "A checkpoint of the ImageNet branch lacks the base decoder. Pass the VA-VAE that it was trained over as "
            "base: its .pt file, or its diffusers folder."
        )


def _converted(
    kind: str, read: Sequence[Source], given: Mapping[str, Any], norm_num_groups: int
) -> tuple[Any, ConversionReport]:
    state = read[0].tensors
    statistics = None if given["statistics"] is None else read_statistics(given["statistics"])
    if kind == tiny.KIND:
        return tiny.convert_tae(state, read[1].tensors)
    if kind == imagenet.KIND:
        return imagenet.convert_davae_imagenet(state, load_base(given["base"], norm_num_groups), statistics)
    if kind in dit.KINDS:
        return dit.convert_dit(state, kind, given["num_attention_heads"])
    if kind == lightningdit.KIND:
        expected = {name: given[name] for name in OPTIONS[kind] if given[name] is not None}
        return lightningdit.convert_lightningdit(state, expected)
    if kind == sd3.KIND:
        return sd3.convert_davae_sd3(state, statistics, norm_num_groups)
    return ldm.convert_ldm(state, statistics, given["scaling_factor"], given["shift_factor"], norm_num_groups)


def _write(model: Any, content: Mapping[str, Any], folder: Path) -> None:
    """Save under a temporary name and rename; a failure leaves nothing behind."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(temporary)
        (temporary / "conversion.json").write_text(json.dumps(content, indent=1) + "\n")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
