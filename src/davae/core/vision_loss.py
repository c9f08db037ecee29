"""The VF loss of VA-VAE (Yao et al. 2025, Eq. 2-3): a projected latent against vision foundation features.

Both are [B, K, N] or [B, K, h, w], on the same grid. Everything is computed in float32, under autocast too:
the margins are compared with differences of cosines, which bfloat16 does not resolve.
"""

import torch.nn.functional as F
from torch import Tensor

from davae.core.precision import autocast


def vision_foundation(
    projected: Tensor, features: Tensor, cosine_margin: float = 0.0, distance_margin: float = 0.0
) -> Tensor:
    """Both terms with weight 1: `marginal_cosine` + `marginal_distance`."""
    return marginal_cosine(projected, features, cosine_margin) + marginal_distance(
        projected, features, distance_margin
    )


def marginal_cosine(projected: Tensor, features: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over positions of relu(1 - margin - cos(z', f)), the cosine over channels (Eq. 2).

    Raises:
        ValueError: the shapes differ.
    """
    projected, features = _tokens(projected, features)
    return F.relu(1 - margin - F.cosine_similarity(projected, features, dim=1)).mean()


def marginal_distance(projected: Tensor, features: Tensor, margin: float = 0.0) -> Tensor:
    """Mean over pairs of positions of relu(|<z'_i, z'_j> - <f_i, f_j>| - margin), tokens of length 1 (Eq. 3).

    The published code takes the projected latent here too, not the latent itself.

    Raises:
        ValueError: the shapes differ.
    """
    projected, features = _tokens(projected, features)
    return F.relu((_gram(projected) - _gram(features)).abs() - margin).mean()


def _tokens(projected: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    if projected.shape != features.shape or projected.ndim not in (3, 4):
        raise ValueError(
            f"The VF loss cannot compare these: got a projected latent {tuple(projected.shape)} and features "
            f"{tuple(features.shape)}, allowed two of the same shape [B, K, N] or [B, K, h, w]. Project one onto the "
            f"channels of the other, and take the features on the latent's grid."
        )
    return projected.float().flatten(2), features.float().flatten(2)


def _gram(tokens: Tensor) -> Tensor:
    """Cosines of all pairs of positions: [B, K, N] -> [B, N, N]."""
    unit = F.normalize(tokens, dim=1)
    with autocast(unit.device, "fp32"):
        return unit.transpose(1, 2) @ unit
