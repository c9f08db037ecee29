"""Files in, diffusers folder out: which layout it is, what it needs, and a folder written whole or not at all."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin

from davae.convert import from_davae_imagenet, from_davae_sd3, from_dit, from_ldm, from_lightningdit, from_tae
from davae.convert.keys import ConversionError, ConversionReport, fit, some
from davae.convert.kl import NORM_GROUPS
from davae.convert.training_state import read_weights
from davae.convert.unpickle import Source, read_source, read_statistics
from davae.core.files import replacing_folder
from davae.core.state import write_json
from davae.models.saved_weights import check_weights, read_config


@dataclass(frozen=True)
class Layout:
    """What is known of a layout before its weights are converted.

    Args:
        recognises: whether keys are of this layout.
        options: the `Options` that it takes, by name.
        files: how many a checkpoint consists of.
    """

    recognises: Callable[[Iterable[str]], bool]
    options: tuple[str, ...] = ()
    files: int = 1


KINDS = {
    from_davae_sd3.KIND: Layout(from_davae_sd3.recognises, ("statistics",)),
    from_davae_imagenet.KIND: Layout(from_davae_imagenet.recognises, ("base", "statistics")),
    from_ldm.KIND: Layout(from_ldm.recognises, ("statistics", "scaling_factor", "shift_factor")),
    from_tae.KIND: Layout(from_tae.recognises, files=2),
    from_lightningdit.KIND: Layout(from_lightningdit.recognises, ("num_attention_heads", "qk_norm")),
    **dict.fromkeys(from_dit.KINDS, Layout(from_dit.recognises, ("num_attention_heads",))),
}
"""Known layouts, autoencoders, then transformers; the first that recognises the keys is taken."""
AUTO = "auto"


@dataclass(frozen=True)
class Options:
    """What weights do not show; see `convert`."""

    base: Path | None
    statistics: Path | None
    scaling_factor: float | None
    shift_factor: float | None
    num_attention_heads: int | None
    qk_norm: bool | None


class Savable(Protocol):
    """A model or pipeline of diffusers."""

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> object:
        """Write it into a folder."""


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
    pack: Callable[[ModelMixin], tuple[Savable, str]] | None = None,
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
    _expect_free(folder)
    read, notes = zip(*(read_weights(path, weights) for path in sources), strict=True)
    kind = detect(read[0]) if kind == AUTO else kind
    options = Options(base, statistics, scaling_factor, shift_factor, num_attention_heads, qk_norm)
    _check(kind, read, options)
    model, report = _converted(kind, read, options, norm_num_groups)
    saved, *packed = (model,) if pack is None else pack(model)
    report = replace(
        report,
        dropped={**report.dropped, **{k: v for source in read for k, v in source.dropped.items()}},
        notes=(*(note for of_source in notes for note in of_source), *report.notes, *packed),
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
            return from_dit.kind_of(source.tensors) if kind in from_dit.KINDS else kind
    raise ConversionError(
        f"{source.path} has no layout that davae knows ({', '.join(KINDS)}). Keys seen: {some(list(source.tensors))}."
    )


def load_base(path: Path, norm_num_groups: int = NORM_GROUPS) -> AutoencoderKL:
    """A base autoencoder in the dtype of its file: an LDM checkpoint, a diffusers folder, or a pipeline's.

    Raises:
        ConversionError: it is none of them.
        FileNotFoundError: weights of a folder are not there, or not all of them.
        ValueError: a file of it is damaged.
    """
    if not path.is_dir():
        return from_ldm.convert_ldm(read_weights(path)[0].tensors, norm_num_groups=norm_num_groups)[0]
    folder = path / "vae" if (path / "vae").is_dir() else path
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConversionError(f"The base {path} is no diffusers folder: {config_file.name} is missing.")
    class_name = read_config(config_file).get("_class_name")
    if class_name != "AutoencoderKL":
        raise ConversionError(
            f"The base {path} is of class {class_name}; the ImageNet branch stands on AutoencoderKL."
        )
    files = check_weights(folder).files
    state = {key: value for name in files for key, value in read_source(folder / name).tensors.items()}
    with torch.device("meta"):
        model: AutoencoderKL = AutoencoderKL.from_config(AutoencoderKL.load_config(folder))
    return fit("diffusers", model, state, {key: key for key in state}, {})[0]


def _check(kind: str, read: Sequence[Source], options: Options) -> None:
    if kind not in KINDS:
        raise ConversionError(f"Unknown kind {kind!r}; allowed: {', '.join((AUTO, *KINDS))}.")
    layout = KINDS[kind]
    surplus = [name for name, value in vars(options).items() if value is not None and name not in layout.options]
    if surplus:
        takes = ", ".join(layout.options) or "none"
        raise ConversionError(f"'{kind}' weights take no {' and no '.join(surplus)}; their options: {takes}.")
    for source in read:
        if not layout.recognises(source.tensors):
            seen = some(list(source.tensors))
            raise ConversionError(f"{source.path} is not of the kind '{kind}'. Keys seen: {seen}.")
    if len(read) != layout.files:
        names = ", ".join(source.path.name for source in read)
        hint = "an encoder and a decoder, two files" if layout.files == 2 else "one file"
        raise ConversionError(f"'{kind}' weights are {hint}; got {names}.")


def _converted(
    kind: str, read: Sequence[Source], options: Options, norm_num_groups: int
) -> tuple[ModelMixin, ConversionReport]:
    state = read[0].tensors
    statistics = None if options.statistics is None else read_statistics(options.statistics)
    if kind == from_tae.KIND:
        return from_tae.convert_tae(state, read[1].tensors)
    if kind == from_davae_imagenet.KIND:
        if options.base is None:
            raise ConversionError(
                "A checkpoint of the ImageNet branch lacks the base decoder. Pass the VA-VAE that it was trained "
                "over as base: its .pt file, or its diffusers folder."
            )
        base = load_base(options.base, norm_num_groups)
        return from_davae_imagenet.convert_davae_imagenet(state, base, statistics)
    if kind in from_dit.KINDS:
        return from_dit.convert_dit(state, kind, options.num_attention_heads)
    if kind == from_lightningdit.KIND:
        expected = {name: getattr(options, name) for name in KINDS[kind].options}
        return from_lightningdit.convert_lightningdit(
            state, {name: value for name, value in expected.items() if value is not None}
        )
    if kind == from_davae_sd3.KIND:
        return from_davae_sd3.convert_davae_sd3(state, statistics, norm_num_groups)
    return from_ldm.convert_ldm(state, statistics, options.scaling_factor, options.shift_factor, norm_num_groups)


def _expect_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConversionError(f"{folder} exists already. Name a new folder, or remove that one first.")


def _write(model: Savable, content: Mapping[str, object], folder: Path) -> None:
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        write_json(temporary / "conversion.json", content, indent=1)
        _expect_free(folder)  # still
