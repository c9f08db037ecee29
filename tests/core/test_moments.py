"""Streaming statistics against numpy and the Frechet distance against closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import assert_close
from davae.core.moments import ChannelMoments, FeatureMoments, frechet_distance


def channel_moments(batches: list[Tensor]) -> ChannelMoments:
    moments = ChannelMoments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


def feature_moments(batches: list[Tensor]) -> FeatureMoments:
    moments = FeatureMoments(batches[0].shape[1])
    for batch in batches:
        moments.update(batch)
    return moments


def test_channel_moments_are_numpys_for_any_grouping() -> None:
    values = torch.randn(11, 3, 4, 5) * torch.tensor([1.0, 5.0, 0.1]).view(1, 3, 1, 1) + 1000
    flat = values.double().movedim(1, 0).flatten(1).numpy()
    groupings = [[values], list(values.split(1)), list(values.split(4)), list(values.flip(0).split([2, 9]))]
    for batches in groupings:
        moments = channel_moments(batches)
        assert moments.count == 11 * 20
        assert moments.mean.dtype == moments.var.dtype == torch.float64
        assert_close(moments.mean, torch.from_numpy(flat.mean(axis=1)), 1e-13)
        np.testing.assert_allclose(moments.var.numpy(), flat.var(axis=1, ddof=1), rtol=1e-10)


def test_feature_moments_are_numpys_for_any_grouping() -> None:
    values = torch.randn(23, 6) @ torch.randn(6, 6) + 100
    groupings = [[values], list(values.split(1)), list(values.split(5)), list(values.flip(0).split([3, 20]))]
    for batches in groupings:
        moments = feature_moments(batches)
        np.testing.assert_allclose(moments.mean.numpy(), values.double().numpy().mean(axis=0), rtol=1e-13)
        covariance = np.cov(values.double().numpy(), rowvar=False)
        np.testing.assert_allclose(moments.cov.numpy(), covariance, rtol=1e-10, atol=1e-10)


def test_half_precision_batches_are_summed_in_double() -> None:
    values = torch.full((4, 2, 100, 100), 300.0, dtype=torch.float16)
    moments = channel_moments([values])
    assert moments.mean.tolist() == [300.0, 300.0]
    assert moments.var.tolist() == [0.0, 0.0]


def test_too_few_or_strange_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 values a channel; got 0"):
        _ = ChannelMoments(3).var
    with pytest.raises(ValueError, match="at least 2 feature vectors; got 1"):
        _ = feature_moments([torch.randn(1, 3)]).cov
    with pytest.raises(ValueError, match="3 channels got a batch of 2"):
        ChannelMoments(3).update(torch.zeros(1, 2, 4, 4))


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b, std_a, std_b = torch.randn(4, 7, dtype=torch.float64).unbind()
    got = frechet_distance(mean_a, (std_a**2).diag(), mean_b, (std_b**2).diag())
    want = ((mean_a - mean_b) ** 2).sum() + ((std_a.abs() - std_b.abs()) ** 2).sum()
    assert got == pytest.approx(want.item(), rel=1e-10)


def test_frechet_distance_of_a_random_pair_is_that_of_the_product() -> None:
    roots = torch.randn(2, 8, 8, dtype=torch.float64)
    a, b = roots @ roots.mT + 0.1 * torch.eye(8, dtype=torch.float64)
    mean_a, mean_b = torch.randn(2, 8, dtype=torch.float64)
    # tr (A B)^1/2 by the eigenvalues of the unsymmetric product, which are real and positive.
    root_trace = np.sqrt(np.linalg.eigvals((a @ b).numpy()).real).sum()
    want = ((mean_a - mean_b) ** 2).sum() + a.trace() + b.trace() - 2 * root_trace
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(want.item(), rel=1e-9)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(want.item(), rel=1e-9)


def test_frechet_distance_is_zero_to_itself_with_fewer_samples_than_features() -> None:
    moments = feature_moments([torch.randn(5, 12)])  # a singular covariance
    distance = frechet_distance(moments.mean, moments.cov, moments.mean, moments.cov)
    assert distance == pytest.approx(0, abs=1e-6)
