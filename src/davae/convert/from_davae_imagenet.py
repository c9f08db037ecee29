"""Checkpoints of the authors' ImageNet branch (VA-VAE and LightningDiT) -> `davae.AutoencoderDA`.

A checkpoint has the base encoder but no base decoder, which `AutoencoderDA.preview` needs: it comes from the VA-VAE
itself. The networks have the key names of `ldm`.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from davae.convert.from_ldm import as_linear, rename
from davae.convert.keys import (
    Arguments,
    ConversionError,
    ConversionReport,
    fit,
    foreign,
    names_of,
    shape_of,
    some,
    sort_keys,
)
from davae.convert.kl import scaling_note
from davae.convert.structured import build, calibrate, geometry
from davae.convert.unpickle import Statistics
from davae.models.autoencoder import AutoencoderDA
from davae.models.inherit import constructor_arguments

KIND = "davae-imagenet"
CONVENTIONS: Arguments = {"clamp_base_image": False, "base_units": "raw", "decoder_order": "base_first"}
EXTRAS = {
    "da.encoder.conv_out.": "bypassed by the detail down block",
    "da.decoder.conv_in.": "bypassed by the detail up block",
    "loss.": "loss of its training",
    "align_proj.": "alignment head of its training",
    "pe_student.": "alignment head of its training",
    "pe_teacher.": "alignment head of its training",
}
PLACES = {
    "base_encoder.": "base_vae.encoder.",
    "base_quant_conv.": "base_vae.quant_conv.",
    "da.da_down.": "encoder.conv_out.",
    "da.da_up.": "decoder.conv_in.",
    "da.encoder.": "encoder.",
    "da.decoder.": "decoder.",
}


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are of this layout, in any spelling of its versions."""
    return any(map(_marks, names_of(keys, _marks).values()))


def convert_davae_imagenet(
    state: Mapping[str, Tensor], base: AutoencoderKL, statistics: Statistics | None = None
) -> tuple[AutoencoderDA, ConversionReport]:
    """A structured autoencoder with these weights.

    Args:
        state: the checkpoint.
        base: the VA-VAE it was trained over; its encoder must equal the checkpoint's base encoder.
        statistics: of the raw latent, C + D channels, base first: `latents_stats.pt` of the latents that a
            transformer was trained on; they replace the base's own. Or of the D detail channels alone. The authors'
            extraction adds unit noise to the detail before it measures, so theirs are that much wider.

    Raises:
        ConversionError: keys are missing, unexpected or misshapen, the base is another one, or `da_mode: full`.
    """
    inside = names_of(state, _marks)
    canonical = {key: _canonical(name) for key, name in inside.items()}
    by_name = {name: state[key] for key, name in canonical.items()}
    base_config = constructor_arguments(base)
    down, up = shape_of(by_name, "da.da_down.conv.weight"), shape_of(by_name, "da.da_up.conv.weight")
    scale, detail_channels = geometry(down, up, base_config)

    placed, dropped = sort_keys(canonical, EXTRAS, PLACES)
    dropped |= foreign(state, inside)
    names = {key: rename(name, levels=len(base.config["block_out_channels"])) for key, name in placed.items()}
    tensors = {key: as_linear(name, state[key]) for key, name in names.items()}
    note = _add_base(base, tensors, names, by_name["da.da_up.conv.weight"].dtype)

    of_base, of_detail = _split(statistics, base.config["latent_channels"], detail_channels)
    if of_base is not None:
        base_config |= {"latents_mean": list(of_base.mean), "latents_std": list(of_base.std)}
    model = build(base_config, scale, detail_channels, CONVENTIONS)
    notes = [note, scaling_note(base_config), calibrate(model, of_detail)]
    return fit(KIND, model, tensors, names, dropped, notes)


def _marks(name: str) -> bool:
    return _canonical(name).startswith("da.da_down.")


def _canonical(key: str) -> str:
    """The key as the latest version of the authors' code writes it: "da.da_down.", formerly "dc.dc_down."."""
    key = re.sub(r"^dc\.", "da.", key)
    key = re.sub(r"^(da\.)?dc_(down|up)\.", r"da.da_\2.", key)
    return re.sub(r"^(encoder|decoder|da_down|da_up)\.", r"da.\1.", key)


def _add_base(base: AutoencoderKL, tensors: dict[str, Tensor], names: dict[str, str], dtype: torch.dtype) -> str:
    """Add the base's parts that the checkpoint lacks, in `dtype`; compare the others. Returns a note."""
    given = {
        name.removeprefix("base_vae."): tensors[key] for key, name in names.items() if name.startswith("base_vae.")
    }
    parts = {key.partition(".")[0] for key in given}
    same: list[str] = []
    different: list[str] = []
    for key, tensor in base.state_dict().items():
        if key.partition(".")[0] not in parts:
            tensors[f"base:{key}"], names[f"base:{key}"] = tensor.to(dtype), f"base_vae.{key}"
        elif key in given:  # what the checkpoint's own part lacks is found missing later
            (same if _equal(given[key], tensor) else different).append(key)
    if different:
        raise ConversionError(
            f"The base is not the one that this checkpoint was trained over: {len(different)} of "
            f"{len(same) + len(different)} weights of its encoder differ ({some(different)}). "
            f"Pass the VA-VAE that belongs to it."
        )
    if not same:
        return "base: taken unchecked, the checkpoint has no base encoder of its own"
    return f"base: the {len(same)} weights of its encoder equal the checkpoint's; its decoder was added"


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Equality in the coarser of the two dtypes: a base saved in half precision is still the same one."""
    coarse = max(ours.dtype, theirs.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    return ours.shape == theirs.shape and torch.equal(ours.to(coarse), theirs.to(coarse))


def _split(statistics: Statistics | None, base: int, detail: int) -> tuple[Statistics | None, Statistics | None]:
    """Statistics of the base channels and of the detail channels, as far as they are given."""
    if statistics is None:
        return None, None
    channels = len(statistics.mean)
    if channels == detail:
        return None, statistics
    if channels == base + detail:
        return statistics.part(0, base), statistics.part(base, channels)
    raise ConversionError(
        f"The statistics are of {channels} channels; allowed: {base + detail} (base, then detail), {detail} (detail)."
    )
