"""What base and detail channels share: alignment, correlation, linear probes, principal components.

All are functions of means and covariances over all positions of all images, so no latent has to be kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from davae.core.layout import LatentLayout
from davae.core.moments import FeatureMoments

RIDGE = 1e-3  # penalty of a probe, in mean variances of its inputs
_CONSTANT = 1e-12  # a channel of less variance than this share of the largest is constant up to rounding


@dataclass(frozen=True)
class SecondMoments:
    """Mean [K] and covariance [K, K] of feature vectors, float64, with 1/N."""

    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, moments: FeatureMoments) -> "SecondMoments":
        """Of streamed statistics."""
        return cls(moments.mean, moments.cov * ((moments.count - 1) / moments.count))

    def mapped(self, weight: Tensor) -> "SecondMoments":
        """Moments of weight @ x, weight [M, K]."""
        return SecondMoments(weight @ self.mean, weight @ self.cov @ weight.T)

    def part(self, channels: Tensor) -> "SecondMoments":
        """Moments of the channels with these indices."""
        return SecondMoments(self.mean[channels], self.cov[channels[:, None], channels])


def channels_of(layout: LatentLayout) -> tuple[Tensor, Tensor]:
    """Indices of the base channels [C] and of the detail channels [D]."""
    base, detail = layout.split(torch.arange(layout.channels)[None])
    return base[0], detail[0]


@dataclass(frozen=True)
class Alignment:
    """How close the grouped detail mean is to the base.

    Args:
        channels: Pearson correlation of each base channel, [C]; nan where one side is constant.
        elements: Pearson correlation over all elements of all channels; nan where one side is constant.
        mse: mean squared difference, raw units: what the alignment loss is at the posterior mean.
        explained: 1 - variance of the difference / variance of the base, both summed over channels; 1 is a copy, 0
            is what a constant reaches, and a mean that is off costs nothing here.
    """

    channels: Tensor
    elements: float
    mse: float
    explained: float


def alignment(pair: SecondMoments) -> Alignment:
    """Of moments [2 C] of raw base channels followed by the grouped detail means."""
    channels = len(pair.mean) // 2
    eye = torch.eye(channels, dtype=pair.cov.dtype)
    difference = pair.mapped(torch.cat([eye, -eye], dim=1))
    base, grouped = pair.mean.chunk(2)
    variance = pair.cov.diagonal()
    elements = torch.tensor(
        [
            [_pooled(variance[:channels], base, base), _pooled(pair.cov.diagonal(channels), base, grouped)],
            [0, _pooled(variance[channels:], grouped, grouped)],
        ]
    )
    return Alignment(
        channels=correlation(pair.cov).diagonal(channels),
        elements=float(correlation(elements)[0, 1]),
        mse=float((difference.cov.diagonal() + difference.mean.square()).mean()),
        explained=float(1 - difference.cov.trace() / variance[:channels].sum()),
    )


def correlation(cov: Tensor) -> Tensor:
    """Pearson correlations of a covariance [K, K]; nan in rows and columns of constant channels."""
    variance = cov.diagonal()
    variance = torch.where(variance > _CONSTANT * variance.max(), variance, torch.nan)
    root = variance.sqrt()
    return (cov / root[:, None] / root).clamp(-1, 1)


def mean_correlations(matrix: Tensor, layout: LatentLayout) -> dict[str, float]:
    """Mean |r| off the diagonal within base, within detail, and between them.

    Undefined correlations are left out of the means; nan where none is defined. A block of a single channel with
    itself has no mean.
    """
    base, detail = channels_of(layout)
    blocks = {"within base": (base, base), "within detail": (detail, detail), "between": (base, detail)}
    means = {}
    for name, (rows, columns) in blocks.items():
        values = matrix[rows[:, None], columns][rows[:, None] != columns].abs()
        if len(values):
            means[name] = float(values.nanmean())
    return means


def linear_probe(
    fit: SecondMoments, judge: SecondMoments, inputs: Tensor, targets: Tensor, ridge: float = RIDGE
) -> float:
    """R^2 of ridge regression from some channels to others, position by position.

    Args:
        fit: moments of the images to fit on.
        judge: moments of other images, which R^2 is of.
        inputs: indices of the channels to predict from, [I].
        targets: indices of the channels to predict, [T]; squared errors and variances are summed over them.
        ridge: penalty on the squared weights, in mean variances of the inputs.

    Returns:
        1 for a perfect prediction, 0 for one no better than the mean, negative for a worse one; nan where inputs or
        targets are constant.
    """
    source, variance = fit.part(inputs).cov, judge.part(targets).cov.trace()
    if source.trace() <= 0 or variance <= 0:
        return float("nan")
    penalty = ridge * source.diagonal().mean() * torch.eye(len(inputs), dtype=source.dtype)
    weight = torch.linalg.solve(source + penalty, fit.cov[inputs[:, None], targets])  # [I, T]
    residual = torch.eye(len(fit.mean), dtype=source.dtype)[targets]  # [T, K]: target less prediction
    residual[:, inputs] -= weight.T
    errors = judge.mapped(residual)
    offset = errors.mean - residual @ fit.mean
    return float(1 - (errors.cov.trace() + offset.square().sum()) / variance)


@dataclass(frozen=True)
class PrincipalComponents:
    """The directions in which some channels vary most.

    Args:
        mean: of the channels, [K].
        axes: unit vectors, [n, K], n at most 3, the largest variance first.
        deviation: standard deviation along each axis, [n].
        share: of the whole variance that lies along the axes.
    """

    mean: Tensor
    axes: Tensor
    deviation: Tensor
    share: float

    def scores(self, latent: Tensor) -> Tensor:
        """Latents [B, K, h, w] along the axes, in standard deviations: [B, n, h, w]."""
        centred = latent.to("cpu", torch.float64) - self.mean[:, None, None]
        return torch.einsum("nk,bkhw->bnhw", self.axes / self.deviation[:, None], centred)


def principal_components(moments: SecondMoments, count: int = 3) -> PrincipalComponents:
    """The first `count` components with any variance; the largest entry of each axis is positive."""
    values, vectors = torch.linalg.eigh((moments.cov + moments.cov.T) / 2)
    values, axes = values.flip(0)[:count], vectors.T.flip(0)[:count]
    axes = axes[values > _CONSTANT * values[0].clamp_min(0)]
    values = values[: len(axes)]
    largest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    share = float(values.sum() / moments.cov.trace()) if len(axes) else 0.0
    return PrincipalComponents(moments.mean, axes * largest.sign(), values.sqrt(), share)


def base_and_detail_components(
    moments: SecondMoments, layout: LatentLayout
) -> tuple[PrincipalComponents, PrincipalComponents]:
    """Components of the base and of the detail, each detail axis turned to agree with the base's of its rank."""
    base, detail = channels_of(layout)
    first, second = principal_components(moments.part(base)), principal_components(moments.part(detail))
    shared = min(len(first.axes), len(second.axes))
    agreement = (second.axes[:shared] @ moments.cov[detail[:, None], base] @ first.axes[:shared].T).diagonal()
    signs = torch.ones(len(second.axes), dtype=torch.float64)
    signs[:shared] = torch.where(agreement < 0, -1.0, 1.0).double()
    return first, PrincipalComponents(second.mean, second.axes * signs[:, None], second.deviation, second.share)


def _pooled(covariance: Tensor, mean: Tensor, other_mean: Tensor) -> float:
    """Covariance over all elements of all channels, from each channel's covariance and means."""
    return float(covariance.mean() + (mean * other_mean).mean() - mean.mean() * other_mean.mean())
