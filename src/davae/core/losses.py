"""The losses of the method as functions of tensors. Weights over steps live in `schedules`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.flow import per_sample
from davae.core.layout import LatentLayout
from davae.core.schedules import normalise_weights


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean over all elements of mu^2 + var - 1 - logvar: KL to N(0, 1) without the 1/2 (ImageNet branch)."""
    return (mean.square() + logvar.exp() - 1 - logvar).mean()


def kl_divergence_sum(mean: Tensor, logvar: Tensor) -> Tensor:
    """Batch mean of the KL to N(0, 1) summed over a sample, with its 1/2 (VA-VAE and text-to-image branch)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1).mean()


def alignment(layout: LatentLayout, detail: Tensor, base: Tensor) -> Tensor:
    """Detail alignment: MSE of the grouped mean of the detail latent to the (constant) base latent (Eq. 4-5)."""
    return F.mse_loss(layout.group_mean(detail), base.detach())


def gradient_ratio(
    numerator: Sequence[Tensor], denominator: Sequence[Tensor], eps: float = 1e-4, maximum: float = 1e4
) -> Tensor:
    """Adaptive weight ||grad of reference|| / (||grad of term|| + eps), clamped to [0, maximum], detached.

    Args:
        numerator: gradients of the reference loss with respect to the chosen weights.
        denominator: gradients of the term to be weighted, with respect to the same weights.
        eps: keeps the ratio finite where the term has no gradient (1e-4 in VQGAN and the reference).
        maximum: upper clamp (1e4 for the adversarial term, 1e8 for alignment).
    """
    return (_norm(numerator) / (_norm(denominator) + eps)).clamp(0, maximum).detach()


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack([g.float().norm() for g in gradients]).norm()


def weighted_mse(
    predicted: Tensor, target: Tensor, weights: Tensor | None = None, emphasis: Tensor | None = None
) -> Tensor:
    """Channel-weighted MSE per sample, [B].

    Args:
        predicted: [B, C, ...].
        target: likewise.
        weights: of the channels, [C]; they are scaled to mean 1. None: all ones.
        emphasis: of the samples, [B], or of each of their channels, [B, C]; taken as it is. None: all ones.
    """
    error = (predicted - target).square()
    if weights is not None:
        error = error * normalise_weights(weights).to(error).reshape(1, -1, *[1] * (error.ndim - 2))
    if emphasis is not None and emphasis.ndim > 1:
        return (error * per_sample(emphasis, error)).flatten(1).mean(dim=1)
    errors = error.flatten(1).mean(dim=1)
    return errors if emphasis is None else errors * emphasis


def velocity_cosine(predicted: Tensor, target: Tensor, weights: Tensor | None = None, eps: float = 1e-8) -> Tensor:
    """Velocity direction loss per sample, [B]: mean over positions of 1 - cos over channels (LightningDiT).

    `weights` [C] or [B, C] enter the inner products, so that a channel of weight 0 has no influence. None is the
    authors' form, which lets the detail channels in from the first step.
    """
    if weights is None:
        return (1 - F.cosine_similarity(predicted, target, dim=1, eps=eps)).flatten(1).mean(dim=1)
    root = per_sample(torch.atleast_2d(weights.to(predicted).sqrt()), predicted)
    return velocity_cosine(predicted * root, target * root, eps=eps)


def token_cosine(found: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of 1 - cos of features [B, N, D], a scalar in [0, 2]."""
    return (1 - F.cosine_similarity(found.float(), target.float(), dim=-1)).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """0.5 * (mean relu(1 - D(x)) + mean relu(1 + D(x_hat)))."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def lecam(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """LeCam regulariser (Tseng et al. 2021): answers are drawn to the running mean of the other kind.

    mean relu(D(x) - a_fake)^2 + mean relu(a_real - D(x_hat))^2, with detached anchors.
    """
    return F.relu(real - fake_anchor).square().mean() + F.relu(real_anchor - fake).square().mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean D(x_hat)."""
    return -fake.mean()
