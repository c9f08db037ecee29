"""Alignment, probes, correlations and components against direct computations and constructed latents."""

import math

import pytest
import torch

from davae.core.layout import LatentLayout
from davae.core.moments import FeatureMoments
from davae.evaluate.agreement import (
    SecondMoments,
    alignment,
    base_and_detail_components,
    channels_of,
    correlation,
    linear_probe,
    mean_correlations,
    principal_components,
)

LAYOUT = LatentLayout(3, 3)
BASE, DETAIL = channels_of(LAYOUT)


def moments(values: torch.Tensor) -> SecondMoments:
    streamed = FeatureMoments(values.shape[1])
    for batch in values.split(97):
        streamed.update(batch)
    return SecondMoments.of(streamed)


def test_moments_map_as_the_vectors_do() -> None:
    values, weight = torch.randn(400, 4).double() + 2, torch.randn(3, 4).double()
    mapped, direct = moments(values).mapped(weight), moments(values @ weight.T)
    torch.testing.assert_close(mapped.mean, direct.mean)
    torch.testing.assert_close(mapped.cov, direct.cov)
    torch.testing.assert_close(direct.cov, torch.cov((values @ weight.T).T, correction=0))


def test_alignment_matches_a_direct_computation() -> None:
    base = torch.randn(500, 3).double() * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 4.0, -1.0])
    grouped = 0.8 * base + 0.3 * torch.randn_like(base) + 0.1
    found = alignment(moments(torch.cat([base, grouped], dim=1)))
    each = [torch.corrcoef(torch.stack([base[:, k], grouped[:, k]]))[0, 1] for k in range(3)]
    torch.testing.assert_close(found.channels, torch.stack(each))
    everything = torch.corrcoef(torch.stack([base.flatten(), grouped.flatten()]))[0, 1]
    assert found.elements == pytest.approx(everything.item(), abs=1e-6)
    assert found.mse == pytest.approx((base - grouped).square().mean().item())
    unexplained = (base - grouped).var(dim=0, correction=0).sum() / base.var(dim=0, correction=0).sum()
    assert found.explained == pytest.approx(1 - unexplained.item())


def test_a_copy_is_aligned_and_an_offset_costs_no_correlation() -> None:
    base = torch.randn(200, 3)
    copy = alignment(moments(torch.cat([base, base], dim=1)))
    assert (copy.elements, copy.mse, copy.explained) == pytest.approx((1, 0, 1))
    shifted = alignment(moments(torch.cat([base, base + 2], dim=1)))
    assert (shifted.mse, shifted.explained) == pytest.approx((4, 1))
    opposite = alignment(moments(torch.cat([base, -base], dim=1)))
    torch.testing.assert_close(opposite.channels, torch.full((3,), -1.0).double())
    assert opposite.explained == pytest.approx(-3)


def test_constant_channels_have_no_correlation() -> None:
    base = torch.randn(200, 2)
    constant = torch.full((200, 1), 0.1)
    found = alignment(moments(torch.cat([base, base[:, :1], constant], dim=1)))
    assert found.channels[0].item() == pytest.approx(1)
    assert found.channels[1].isnan()
    assert math.isnan(alignment(moments(torch.full((50, 2), 0.1))).elements)


def test_correlations_of_blocks() -> None:
    base = torch.randn(2000, 3)
    detail = torch.stack([base[:, 0], -base[:, 0], torch.full((2000,), 0.1)], dim=1)
    matrix = correlation(moments(torch.cat([base, detail], dim=1)).cov)
    assert matrix[0, 3].item() == pytest.approx(1)
    assert matrix[0, 4].item() == pytest.approx(-1)
    assert matrix[5].isnan().all()
    means = mean_correlations(matrix, LAYOUT)
    assert means["within detail"] == pytest.approx(1), "the constant channel is left out, the sign does not matter"
    assert means["within base"] < 0.05
    assert means["between"] == pytest.approx(2 / 6, abs=0.03)
    assert set(mean_correlations(torch.eye(2).double(), LatentLayout(1, 1))) == {"between"}


def test_probe_finds_a_linear_map_and_is_judged_on_other_images() -> None:
    weight = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.3, 0.0, 1.0]])

    def sample(noise: float, offset: float = 0.0) -> SecondMoments:
        base = torch.randn(4000, 3)
        detail = base @ weight + noise * torch.randn(4000, 3) + 3
        return moments(torch.cat([base, detail + offset], dim=1))

    assert linear_probe(sample(0.0), sample(0.0), BASE, DETAIL) > 0.999
    assert linear_probe(sample(0.0), sample(0.0), DETAIL, BASE) > 0.99
    half = linear_probe(sample(1.0), sample(1.0), BASE, DETAIL)
    explained = weight.square().sum().item()
    assert half == pytest.approx(explained / (explained + 3), abs=0.03)
    moved = linear_probe(sample(0.0), sample(0.0, offset=2.0), BASE, DETAIL)
    assert moved == pytest.approx(1 - 3 * 4 / explained, abs=0.15), "an offset that was not seen counts as error"


def test_probe_of_noise_is_worth_nothing_and_too_little_data_is_worse() -> None:
    noise = [moments(torch.randn(4000, 6)) for _ in range(2)]
    assert linear_probe(*noise, BASE, DETAIL) == pytest.approx(0, abs=0.01)
    assert linear_probe(moments(torch.randn(4, 6)), noise[1], BASE, DETAIL) < -0.1
    assert math.isnan(linear_probe(moments(torch.zeros(9, 6)), noise[1], BASE, DETAIL))


def test_probe_equals_ridge_regression_done_directly() -> None:
    fit, judge = torch.randn(300, 6).double(), torch.randn(200, 6).double()
    for values in (fit, judge):
        values[:, 3:] += values[:, :3] @ torch.ones(3, 3).double()
    x, y = fit[:, :3] - fit[:, :3].mean(dim=0), fit[:, 3:] - fit[:, 3:].mean(dim=0)
    penalty = 0.5 * x.var(dim=0, correction=0).mean() * len(x) * torch.eye(3).double()
    weight = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    predicted = (judge[:, :3] - fit[:, :3].mean(dim=0)) @ weight + fit[:, 3:].mean(dim=0)
    error = (judge[:, 3:] - predicted).square().sum() / (judge[:, 3:] - judge[:, 3:].mean(dim=0)).square().sum()
    assert linear_probe(moments(fit), moments(judge), BASE, DETAIL, 0.5) == pytest.approx(1 - error.item())


def test_components_of_a_known_mixture() -> None:
    mixing = torch.linalg.qr(torch.randn(6, 6).double()).Q
    values = torch.randn(5000, 6).double() * torch.tensor([5.0, 3.0, 2.0, 0.5, 0.2, 0.1]) @ mixing.T + 4
    found = principal_components(moments(values))
    overlap = (found.axes @ mixing[:, :3]).abs()
    torch.testing.assert_close(overlap, torch.eye(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(found.deviation, torch.tensor([5.0, 3.0, 2.0]).double(), rtol=0.05, atol=0)
    assert found.share == pytest.approx(38 / 38.3, abs=0.005)
    assert (found.axes.gather(1, found.axes.abs().argmax(dim=1, keepdim=True)) > 0).all()
    scores = found.scores(values.T.reshape(1, 6, 50, 100))
    torch.testing.assert_close(scores.mean(dim=(0, 2, 3)), torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(scores.var(dim=(0, 2, 3), correction=0), torch.ones(3).double())


def test_components_that_do_not_exist_are_left_out() -> None:
    line = torch.randn(100, 1) @ torch.tensor([[1.0, 2.0, -1.0]])
    found = principal_components(moments(line))
    assert found.axes.shape == (1, 3)
    assert found.share == pytest.approx(1)
    assert principal_components(moments(torch.full((9, 3), 0.1))).axes.shape == (0, 3)


def test_detail_axes_agree_with_the_base() -> None:
    base = torch.randn(500, 3) * torch.tensor([3.0, 2.0, 1.0])
    for sign in (1, -1):
        values = moments(torch.cat([base, sign * base], dim=1))
        first, second = base_and_detail_components(values, LAYOUT)
        torch.testing.assert_close(second.axes, sign * first.axes)
