"""What a structured autoencoder gives out: a posterior whose base is certain, and a training step's tensors."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


class StructuredPosterior(DiagonalGaussianDistribution):
    """Posterior of a structured latent: the base channels are certain (standard deviation 0)."""

    def __init__(self, mean: Tensor, logvar: Tensor, base_channels: int) -> None:
        super().__init__(torch.cat([mean, logvar], dim=1))
        # The parent clamps log-variances at -30, which would still put noise on the base.
        self.std[:, :base_channels] = 0.0
        self.var[:, :base_channels] = 0.0


@dataclass
class StructuredOutput(BaseOutput):
    """What a training step needs to know. Latents are raw, [B, C or D, h, w].

    Args:
        sample: reconstruction [B, 3, H, W].
        base: base latent, a constant of the training.
        detail: detail latent as drawn from its posterior, before any dropout.
        detail_mean: posterior mean.
        detail_logvar: posterior log-variance.
    """

    sample: Tensor
    base: Tensor
    detail: Tensor
    detail_mean: Tensor
    detail_logvar: Tensor
