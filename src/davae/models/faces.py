"""One face for plain and structured autoencoders: what caching, sampling and evaluation ask of either."""

import hashlib
import json
from typing import Any

from torch import Tensor, nn

from davae.core.layout import LatentLayout
from davae.core.scaling import LatentScaling
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.models.scaling import scaling_of


def layout_of(autoencoder: Any) -> LatentLayout:
    """Channels of its latent; a plain autoencoder has no detail."""
    if isinstance(autoencoder, AutoencoderDA):
        return autoencoder.layout
    return LatentLayout(family_of(type(autoencoder).__name__).latent_channels(autoencoder.config), 0)


def compression_of(autoencoder: Any) -> int:
    """Pixels of an image that a latent position stands for, a side."""
    if isinstance(autoencoder, AutoencoderDA):
        return autoencoder.compression
    return family_of(type(autoencoder).__name__).compression(autoencoder.config)


def raw_moments(autoencoder: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [B, C + D, h, w], log-variance [B, D, h, w]) of images in [-1, 1], as the latent cache stores them."""
    if isinstance(autoencoder, AutoencoderDA):
        base, mean, logvar = autoencoder.moments(images)
        return autoencoder.layout.join(base, mean), logvar
    mean = family_of(type(autoencoder).__name__).encode(autoencoder, images)
    return mean, mean[:, :0]


def raw_scaling(autoencoder: Any) -> LatentScaling:
    """From raw moments to what the transformer sees."""
    return autoencoder.raw_scaling if isinstance(autoencoder, AutoencoderDA) else scaling_of(autoencoder)


def weights_hash(model: nn.Module) -> str:
    """Hash of a model's config and weights, the same on every device and for every way of storing them."""
    digest = hashlib.blake2b(digest_size=16)
    # An entry without a value is as good as none, so that a later version may add one.
    config = {key: value for key, value in model.config.items() if value is not None and not key.startswith("_")}  # type: ignore[union-attr,operator]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
