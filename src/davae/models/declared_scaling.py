"""Reads the latent scaling that an autoencoder declares.

Three conventions of diffusers are read here and nowhere else: per-channel `latents_mean` / `latents_std`
(VA-VAE, LightningDiT), the scalars `scaling_factor` / `shift_factor` (SD, SD3, FLUX, DC-AE), and FLUX.2's batch
norm over latents packed 2x2, which has its own statistics for each of the four positions.
"""

from diffusers.models.modeling_utils import ModelMixin

from davae.core.scaling import LatentScaling


def scaling_of(autoencoder: ModelMixin) -> LatentScaling:
    """The convention that an autoencoder declares, for the latent that `encode` emits.

    Raises:
        ValueError: it declares none.
    """
    config = autoencoder.config
    if config.get("batch_norm_eps") is not None:
        mean, variance = (autoencoder.get_buffer(f"bn.running_{moment}") for moment in ("mean", "var"))
        scale = (variance.double() + config["batch_norm_eps"]).rsqrt()
        return LatentScaling(tuple(mean.tolist()), tuple(scale.tolist()), patch=2)
    channels = config["latent_channels"]
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return LatentScaling(tuple(map(float, mean)), tuple(1 / float(value) for value in std))
    factor = config.get("scaling_factor")
    if factor is None:
        raise ValueError(
            f"{type(autoencoder).__name__} declares neither latents_mean/latents_std nor scaling_factor; "
            f"its latents cannot be normalised. Set one of them in its config."
        )
    shift = config.get("shift_factor") or 0.0  # None in SD, DC-AE and PixArt bases
    return LatentScaling((float(shift),) * channels, (float(factor),) * channels)
