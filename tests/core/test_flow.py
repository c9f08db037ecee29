"""Path, grids and the Euler loop against the reference's transport, and the flip to diffusers' sigmas."""

from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from conftest import assert_close
from davae.core import flow
from davae.sampling.denoise import denoise


def test_path_is_the_references(golden) -> None:
    tensors = golden("transport")
    data, noise = tensors["in.x1"], tensors["in.x0"]
    assert_close(flow.interpolate(data, noise, tensors["in.t"]), tensors["out.x_t"], 1e-5)
    assert_close(flow.velocity(data, noise), tensors["out.u"], 1e-5)


@pytest.mark.parametrize(
    ("points", "shift", "name"),
    [
        (10, 1.0, "N10_shift0"),
        (10, 0.3, "N10_shift0.3"),
        (10, 0.15, "N10_other_shift"),
        (50, 1.0, "N50_shift0"),
        (50, 0.3, "N50_shift0.3"),
    ],
)
def test_grid_is_the_references(golden, points: int, shift: float, name: str) -> None:
    want = golden("transport")[f"out.grid_{name}"]
    assert_close(flow.time_grid(points, shift).to(want), want, 1e-5)


@pytest.mark.parametrize("points", [10, 50])
@pytest.mark.parametrize(("shift", "name"), [(1.0, "shift0"), (0.3, "shift0.3")])
def test_diffusers_scheduler_integrates_as_the_reference(golden, points: int, shift: float, name: str) -> None:
    tensors = golden("transport")
    states = [tensors["in.z"]]
    end = denoise(
        _linear_field(tensors["in.A"], tensors["in.b"]),
        tensors["in.z"],
        labels=torch.zeros(3, dtype=torch.int64),
        null_labels=torch.zeros(3, dtype=torch.int64),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=flow.sigma_shift(shift)),
        num_steps=points - 1,
        on_step=lambda _step, latents: states.append(latents),
    )
    assert_close(end, tensors[f"out.euler_N{points}_{name}"], 1e-4)
    if points == 10:
        assert_close(torch.stack(states), tensors[f"out.euler_traj_N10_{name}"], 1e-4)


def _linear_field(matrix: Tensor, bias: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def field(noisy: Tensor, time: Tensor, _labels: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", matrix, noisy) + bias * time.view(-1, 1, 1, 1)

    return field


def test_ends_of_the_path_are_noise_and_data() -> None:
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(flow.interpolate(data, noise, torch.zeros(2)), noise)
    assert torch.equal(flow.interpolate(data, noise, torch.ones(2)), data)


def test_true_velocity_points_to_the_data() -> None:
    data, noise, time = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.0, 0.4, 1.0])
    sample = flow.interpolate(data, noise, time)
    assert_close(flow.predicted_data(sample, flow.velocity(data, noise), time), data, 1e-6)


def test_the_clock_takes_base_and_detail_from_noise_to_data() -> None:
    way = torch.linspace(0, 1, 14, dtype=torch.float64)
    clock = flow.lag_clock(way, 0.3)
    base, detail = flow.clock_times(clock, 0.3)
    assert (base[0], detail[0]) == (0, 0)
    assert_close(torch.stack([base[-1], detail[-1]]), torch.ones(2, dtype=torch.float64), 1e-12)
    assert_close(clock.diff(), torch.full((13,), 0.1, dtype=torch.float64), 1e-12)
    assert_close(base[:11], clock[:11], 1e-12)
    assert_close(detail[3:], clock[3:] - 0.3, 1e-12)
    assert not detail[:3].any()  # it waits
    assert (base[11:] == 1).all()  # it has arrived
    for time in flow.clock_times(flow.lag_clock(way, 0.0), 0.0):
        assert torch.equal(time, way)


def test_channels_may_have_times_of_their_own() -> None:
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    times = torch.tensor([[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]])
    noisy = flow.interpolate(data, noise, times)
    for channel in range(3):
        assert torch.equal(noisy[:, channel], flow.interpolate(data, noise, times[:, channel])[:, channel])
    assert_close(flow.predicted_data(noisy, flow.velocity(data, noise), times), data, 1e-6)


def test_native_shift_is_the_inverse_shift_in_sigma() -> None:
    time = torch.linspace(0, 1, 21, dtype=torch.float64)
    shifted = flow.shift_time(time, 0.3)
    in_sigma = flow.shift_time(flow.to_sigma(time), flow.sigma_shift(0.3))  # one formula in either convention
    assert_close(flow.from_sigma(in_sigma), shifted, 1e-12)
    assert (shifted[1:-1] < time[1:-1]).all()  # more steps near the noise
    assert_close(flow.shift_time(shifted, 1 / 0.3), time, 1e-12)


def test_sigmas_leave_the_end_to_the_scheduler() -> None:
    assert flow.scheduler_sigmas(4) == [1.0, 0.75, 0.5, 0.25]
    values = torch.randn(3)
    assert torch.equal(flow.to_scheduler_velocity(flow.to_scheduler_velocity(values)), values)


def test_impossible_values_are_refused() -> None:
    for function in (flow.sigma_shift, lambda shift: flow.shift_time(torch.zeros(1), shift)):
        with pytest.raises(ValueError, match="must be positive; got 0"):
            function(0)
    with pytest.raises(ValueError, match="at least 2 points"):
        flow.time_grid(1)
    with pytest.raises(ValueError, match="at least 1 step"):
        flow.scheduler_sigmas(0)
