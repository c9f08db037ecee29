"""Streaming float64 statistics: mean and variance a channel, mean and covariance of features, Frechet distance."""

import torch
from torch import Tensor


class ChannelMoments:
    """Running mean and variance of each channel over [B, C, H, W] batches, in float64 (Chan's update)."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Add a batch [B, C, ...]; order and grouping of batches do not matter beyond rounding."""
        values = batch.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)
        if values.shape[0] != self.mean.numel():
            raise ValueError(f"Moments of {self.mean.numel()} channels got a batch of {values.shape[0]} channels.")
        count = values.shape[1]
        mean = values.mean(dim=1)
        total = self.count + count
        delta = mean - self.mean
        self._squares += (values - mean[:, None]).square().sum(dim=1) + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def var(self) -> Tensor:
        """Unbiased variance a channel, float64 [C]."""
        if self.count < 2:
            raise ValueError(f"A variance needs at least 2 values a channel; got {self.count}.")
        return self._squares / (self.count - 1)


class FeatureMoments:
    """Running mean and covariance of feature vectors [N, F], in float64."""

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean = torch.zeros(features, dtype=torch.float64)
        self._scatter = torch.zeros(features, features, dtype=torch.float64)

    def update(self, batch: Tensor) -> None:
        """Add feature vectors [N, F]."""
        values = batch.detach().to("cpu", torch.float64)
        mean = values.mean(dim=0)
        centred = values - mean
        self._add(values.shape[0], mean, centred.T @ centred)

    def merge(self, other: "FeatureMoments") -> None:
        """Add the vectors of others; there may be none."""
        if other.count:
            self._add(other.count, other.mean, other._scatter)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan's update by so many vectors of this mean and sum of squares about it."""
        total = self.count + count
        delta = mean - self.mean
        self._scatter += scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total

    @property
    def cov(self) -> Tensor:
        """Covariance with 1/(N - 1), float64 [F, F]."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 feature vectors; got {self.count}.")
        return self._scatter / (self.count - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """||mu_a - mu_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), by symmetric eigenvalues in float64.

    No `sqrtm`: the trace of the root is the sum of the roots of the eigenvalues of A^1/2 B A^1/2, which
    is symmetric and positive semi-definite; rounding below zero is cut there and nowhere else.
    """
    a, b = cov_a.double(), cov_b.double()
    values, vectors = torch.linalg.eigh(a)
    root_a = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root_a @ b @ root_a
    root_trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * root_trace
    return float(distance)
