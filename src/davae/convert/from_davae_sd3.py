"""Checkpoints of the authors' text-to-image branch (SD3's autoencoder) -> `davae.AutoencoderDA`.

They hold the frozen SD3 autoencoder whole, and all names are diffusers' own.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from davae.convert.keys import Arguments, ConversionReport, fit, foreign, names_of, shape_of, sort_keys
from davae.convert.kl import NORM_GROUPS, kl_config, scaling_note
from davae.convert.structured import build, calibrate, geometry
from davae.convert.unpickle import Statistics
from davae.models.autoencoder import AutoencoderDA

KIND = "davae-sd3"
CONVENTIONS: Arguments = {"clamp_base_image": True, "base_units": "scaled", "decoder_order": "detail_first"}
SCALING = {"scaling_factor": 1.5305, "shift_factor": 0.0609}
"""SD3's own; constants of the branch."""
EXTRAS = {
    "vae.encoder.conv_out.": "bypassed by the detail down block",
    "vae.decoder.conv_in.": "bypassed by the detail up block",
    "discriminator.": "discriminator of its training",
}
PLACES = {
    "original_vae_model.vae.": "base_vae.",
    "vae.encoder.": "encoder.",
    "vae.decoder.": "decoder.",
    "dc_down.": "encoder.conv_out.",
    "dc_up.": "decoder.conv_in.",
}


def recognises(keys: Iterable[str]) -> bool:
    """Whether the keys are of this layout."""
    return {"vae", "dc_down"} <= {name.partition(".")[0] for name in names_of(keys, _marks).values()}


def convert_davae_sd3(
    state: Mapping[str, Tensor], statistics: Statistics | None = None, norm_num_groups: int = NORM_GROUPS
) -> tuple[AutoencoderDA, ConversionReport]:
    """A structured autoencoder with these weights.

    Args:
        state: the checkpoint.
        statistics: of the D raw detail channels (`latent_norm_stats.json`). A transformer that was trained without
            that file saw raw detail: means 0, deviations 1.
        norm_num_groups: cannot be read from weights.

    Raises:
        ConversionError: keys are missing, unexpected or misshapen, the statistics do not fit, or `da_mode: full`.
    """
    inside = names_of(state, _marks)
    names, dropped = sort_keys(inside, EXTRAS, PLACES)
    by_name = {name: state[key] for key, name in inside.items()}
    base = {name.removeprefix("base_vae."): state[key] for key, name in names.items() if name.startswith("base_vae.")}
    base_config = kl_config(base, norm_num_groups) | SCALING
    down, up = shape_of(by_name, "dc_down.conv.weight"), shape_of(by_name, "dc_up.conv.weight")
    model = build(base_config, *geometry(down, up, base_config), CONVENTIONS)
    dropped |= foreign(state, inside)
    return fit(KIND, model, state, names, dropped, [scaling_note(base_config), calibrate(model, statistics)])


def _marks(name: str) -> bool:
    return name.startswith("dc_down.")
