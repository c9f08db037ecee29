"""The autoencoder half of a pair whose transformer is converted: read, and given the statistics of its latents."""

from pathlib import Path
from typing import Any

import torch

from davae.convert.folder import load_base
from davae.convert.keys import ConversionError
from davae.convert.kl import scaling_config
from davae.convert.source import Statistics
from davae.core.scaling import LatentScaling
from davae.models.faces import layout_of
from davae.models.loading import STRUCTURED, load_autoencoder
from davae.models.scaling import scaling_of


def load_half(path: Path, statistics: Statistics | None = None) -> Any:
    """The autoencoder that a transformer was trained over, with the latent statistics of that training.

    Args:
        path: a saved autoencoder, or a pipeline or a hub name with one; or an LDM or VA-VAE checkpoint.
        statistics: of its raw latent, as `latents_stats.pt` has them. Those that an autoencoder declares itself are
            never replaced: the transformer knows no others.

    Raises:
        ConversionError: it declares no statistics and none are given, or others than those given.
        FileNotFoundError: there is no autoencoder.
    """
    vae = load_base(path) if path.is_file() else load_autoencoder(path)
    if statistics is not None:
        _declare(vae, statistics, path)
    try:
        scaling_of(vae)
    except ValueError:
        raise ConversionError(
            f"{path} does not say how its latents are normalised, and a transformer sees normalised ones. Pass the "
            f"statistics of the latents that it was trained on, for example latents_stats.pt."
        ) from None
    vae.register_to_config(_name_or_path="")  # what is saved must not depend on where it lay
    return vae


def _declare(vae: Any, statistics: Statistics, path: Path) -> None:
    name = type(vae).__name__
    if name == STRUCTURED or "latents_mean" not in vae.config:
        raise ConversionError(
            f"An {name} takes no statistics here; got {path} and statistics of {len(statistics.mean)} channels. "
            f"Leave them out: it declares its own, and one that was converted got them in its own conversion."
        )
    wanted = LatentScaling(statistics.mean, tuple(1 / std for std in statistics.std))
    scaling = scaling_config(layout_of(vae).channels, statistics)
    if vae.config.latents_mean is not None and not _equal(scaling_of(vae), wanted):
        raise ConversionError(
            f"{path} declares other latent statistics than those given. Leave the statistics out if the transformer "
            f"was trained with the autoencoder's own; else give the autoencoder without any."
        )
    vae.register_to_config(**scaling)


def _equal(ours: LatentScaling, theirs: LatentScaling) -> bool:
    pairs = ((ours.shift, theirs.shift), (ours.scale, theirs.scale))
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6) for a, b in pairs)
