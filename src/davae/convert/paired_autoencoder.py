"""The autoencoder of a pair whose transformer is converted: read, and given the statistics of its latents."""

from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin

from davae.convert.dispatch import load_base
from davae.convert.keys import ConversionError
from davae.convert.kl import scaling_config
from davae.convert.unpickle import Statistics
from davae.core.scaling import LatentScaling
from davae.models.adapter import adapt
from davae.models.autoencoder import AutoencoderDA
from davae.models.declared_scaling import scaling_of
from davae.models.identity import nameless
from davae.models.loading import load_autoencoder


def load_paired_autoencoder(path: Path, statistics: Statistics | None = None) -> ModelMixin:
    """The autoencoder that a transformer was trained over, with the latent statistics of that training.

    Args:
        path: a saved autoencoder, or a pipeline or a hub name with one; or an LDM or VA-VAE checkpoint.
        statistics: of its raw latent, as `latents_stats.pt` has them. Those that an autoencoder declares itself are
            never replaced: the transformer knows no others.

    Raises:
        ConversionError: it declares no statistics and none are given, or others than those given.
        FileNotFoundError: there is no autoencoder.
    """
    autoencoder: ModelMixin = load_base(path) if path.is_file() else load_autoencoder(path)
    if statistics is not None:
        _declare(autoencoder, statistics, path)
    try:
        scaling_of(autoencoder)
    except ValueError:
        raise ConversionError(
            f"{path} does not say how its latents are normalised, and a transformer sees normalised ones. Pass the "
            f"statistics of the latents that it was trained on, for example latents_stats.pt."
        ) from None
    return nameless(autoencoder)


def _declare(autoencoder: ModelMixin, statistics: Statistics, path: Path) -> None:
    if isinstance(autoencoder, AutoencoderDA) or "latents_mean" not in autoencoder.config:
        raise ConversionError(
            f"An {type(autoencoder).__name__} takes no statistics here; got {path} and statistics of "
            f"{len(statistics.mean)} channels. Leave them out: it declares its own, and one that was converted got "
            f"them in its own conversion."
        )
    scaling = scaling_config(adapt(autoencoder).layout.channels, statistics)
    expected = LatentScaling(statistics.mean, tuple(1 / std for std in statistics.std))
    if autoencoder.config.latents_mean is not None and not _equal(scaling_of(autoencoder), expected):
        raise ConversionError(
            f"{path} declares other latent statistics than those given. Leave the statistics out if the transformer "
            f"was trained with the autoencoder's own; else give the autoencoder without any."
        )
    autoencoder.register_to_config(**scaling)


def _equal(ours: LatentScaling, theirs: LatentScaling) -> bool:
    pairs = ((ours.shift, theirs.shift), (ours.scale, theirs.scale))
    return all(torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6) for a, b in pairs)
