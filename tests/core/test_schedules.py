"""The detail weight and the loss it makes against the reference's, and the other ramps."""

import pytest
import torch
from torch import Tensor

from conftest import assert_close
from davae.core import schedules
from davae.core.flow import interpolate, velocity
from davae.core.layout import LatentLayout
from davae.core.losses import velocity_cosine, weighted_mse

LAYOUT, WARMUP = LatentLayout(4, 12), 20_000


def test_detail_weight_and_mask_are_the_references(golden) -> None:
    tensors = golden("channel_schedule")
    weights = [schedules.detail_weight(step, WARMUP) for step in tensors["in.steps"].tolist()]
    assert_close(torch.tensor(weights), tensors["out.weight"], 1e-5)
    masks = torch.stack([LAYOUT.channel_weights(weight) for weight in weights])
    assert_close(masks, tensors["out.mask"], 1e-5)


def test_weighted_loss_is_the_references(golden) -> None:
    tensors = golden("channel_schedule")
    data, noise = tensors["in.x1"], tensors["in.x0"]
    target = velocity(data, noise)
    assert_close(interpolate(data, noise, tensors["in.t"]), tensors["out.x_t"], 1e-5)
    assert_close(target, tensors["out.v"], 1e-5)
    for row, step in enumerate(tensors["in.loss_steps"].tolist()):
        weights = LAYOUT.channel_weights(schedules.detail_weight(step, WARMUP))
        mse = weighted_mse(tensors["in.v_hat"], target, weights)
        cosine = velocity_cosine(tensors["in.v_hat"], target)  # the authors' form: all channels at every step
        assert_close(mse, tensors["out.mse_per_sample"][row], 1e-5)
        assert_close(cosine, tensors["out.cos_per_sample"][row], 1e-5)
        assert_close(mse.mean() + cosine.mean(), tensors["out.total"][row], 1e-5)


@pytest.mark.parametrize("loss", [weighted_mse, velocity_cosine])
def test_detail_at_weight_zero_has_no_gradient(loss) -> None:
    gradient = _gradient(loss, LAYOUT.channel_weights(0.0))
    assert not gradient[:, 4:].any()
    assert gradient[:, :4].abs().min() > 0


def test_authors_direction_loss_moves_the_detail_from_the_first_step() -> None:
    assert _gradient(velocity_cosine, None)[:, 4:].abs().min() > 0


@pytest.mark.parametrize("loss", [weighted_mse, velocity_cosine])
def test_detail_at_weight_zero_has_no_influence(loss) -> None:
    predicted, target = torch.randn(2, 16, 3, 3), torch.randn(2, 16, 3, 3)
    alone = loss(predicted[:, :4], target[:, :4])
    assert_close(loss(predicted, target, LAYOUT.channel_weights(0.0)), alone, 1e-6)
    assert_close(loss(predicted, target, torch.full((16,), 3.0)), loss(predicted, target), 1e-6)


def test_emphasis_of_channels_that_is_the_same_for_all_is_emphasis_of_the_sample() -> None:
    predicted, target, weights = torch.randn(2, 16, 3, 3), torch.randn(2, 16, 3, 3), LAYOUT.channel_weights(0.5)
    each = torch.tensor([0.5, 3.0])
    want = weighted_mse(predicted, target, weights) * each
    assert torch.equal(weighted_mse(predicted, target, weights, each), want)
    assert_close(weighted_mse(predicted, target, weights, each[:, None].expand(2, 16)), want, 1e-6)
    first = torch.tensor([[1.0] * 4 + [0.0] * 12] * 2)  # weights keep their mean over all channels
    assert_close(
        weighted_mse(predicted, target, None, first), weighted_mse(*(x[:, :4] for x in (predicted, target))) / 4
    )
    assert_close(velocity_cosine(predicted, target, first), velocity_cosine(predicted[:, :4], target[:, :4]), 1e-6)


def _gradient(loss, weights: Tensor | None) -> Tensor:
    predicted = torch.randn(2, 16, 3, 3, requires_grad=True)
    loss(predicted, torch.randn(2, 16, 3, 3), weights).mean().backward()
    return predicted.grad


def test_normalised_weights_have_mean_one() -> None:
    weights = schedules.normalise_weights(torch.tensor([1.0, 1.0, 0.5, 0.0]))
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0] == 2 * weights[2]


def test_detail_weight_is_monotone_and_can_be_off() -> None:
    weights = [schedules.detail_weight(step, 10, start=0.2, end=0.8) for step in range(-1, 13)]
    assert weights == sorted(weights)
    assert weights[0] == weights[1] == pytest.approx(0.2)
    assert weights[6] == pytest.approx(0.5)
    assert weights[11] == weights[-1] == 0.8
    assert schedules.detail_weight(0, 0) == 1.0


def test_training_times_are_logit_normal() -> None:
    normals = torch.tensor([-1.0, 0.0, 1.0])
    times = schedules.logit_normal_time(normals, mean=0.5, std=2.0)
    assert_close(torch.logit(times), torch.tensor([-1.5, 0.5, 2.5]), 1e-5)


def test_min_snr_weighs_the_velocity_as_the_data_that_it_points_to() -> None:
    times, gamma = torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]), 3.0
    of_data = torch.tensor([0, 1 / 3, 1, 3, 3, 3])  # t / (1 - t), capped
    of_velocity = torch.tensor([0, 3 / 16, 1 / 4, 3 / 16, 0.03, 0])  # t (1 - t) up to t = 3/4, then 3 (1 - t)^2
    assert_close(schedules.min_snr_weight(times, gamma, "data"), of_data, 1e-5)
    assert_close(schedules.min_snr_weight(times, gamma, "velocity"), of_velocity, 1e-5)


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [schedules.learning_rate_factor(step, 4, 14, final=0.1) for step in range(16)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[9] == pytest.approx(0.55)  # half way
    assert factors[14] == factors[15] == pytest.approx(0.1)
    assert schedules.learning_rate_factor(1000, 4, 14) == 1.0  # constant
