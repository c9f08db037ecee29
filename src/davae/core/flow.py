"""Owner of time: rectified flow in one convention, and its mapping to diffusers' sigmas.

Native time t runs from 0 (noise) to 1 (data): x_t = t * data + (1 - t) * noise, velocity = data - noise
(LightningDiT, SiT). diffusers' flow-matching schedulers use sigma = 1 - t and the opposite velocity,
noise - data.

Where the detail lags behind the base, both follow one clock, from 0 to 1 + lag: the base's time is min(clock, 1), the
detail's max(clock - lag, 0). Schedules say how fast the clock runs, and never change the pairs of times that it
passes. Without a lag the clock is the time.
"""

import torch
from torch import Tensor


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape [B], or [B, K], so that it broadcasts over [B, K, ...]."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def interpolate(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = t * data + (1 - t) * noise, with `time` [B] in [0, 1], or [B, K]: a time a channel."""
    t = per_sample(time, data)
    return t * data + (1 - t) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """The target d x_t / d t = data - noise."""
    return data - noise


def predicted_data(sample: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
    """Data that a velocity points to: x_1 = x_t + (1 - t) * v, with `time` as in `interpolate`."""
    return sample + (1 - per_sample(time, sample)) * velocity


def lag_clock(time: Tensor, lag: float) -> Tensor:
    """The clock's state at a share `time` of its way, in [0, 1]: it runs evenly from 0 to 1 + lag."""
    return time + lag * time


def clock_times(clock: Tensor, lag: float) -> tuple[Tensor, Tensor]:
    """Native times of the base and of the detail, each as `clock`."""
    return clock.clamp(max=1), (clock - lag).clamp(0, 1)  # at its end, clock - lag is 1 up to rounding


def shift_time(time: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): s < 1 spends more steps near the noise (LightningDiT uses 0.3)."""
    if shift <= 0:
        raise ValueError(f"Timestep shift must be positive; got {shift}. Use 1.0 for no shift.")
    return shift * time / (1 + (shift - 1) * time)


def time_grid(num_points: int, shift: float = 1.0) -> Tensor:
    """The reference's grid: `num_points` times from 0 to 1, shifted; `num_points - 1` Euler steps. fp64."""
    if num_points < 2:
        raise ValueError(f"A time grid needs at least 2 points (1 step); got {num_points}.")
    return shift_time(torch.linspace(0, 1, num_points, dtype=torch.float64), shift)


def to_sigma(time: Tensor) -> Tensor:
    """diffusers' noise level of a native time: sigma = 1 - t."""
    return 1 - time


def from_sigma(sigma: Tensor) -> Tensor:
    """Native time of diffusers' noise level."""
    return 1 - sigma


def sigma_shift(shift: float) -> float:
    """The shift that does in sigma what `shift` does in native time: 1 / s (0.3 becomes 3.33)."""
    if shift <= 0:
        raise ValueError(f"Timestep shift must be positive; got {shift}. Use 1.0 for no shift.")
    return 1 / shift


def to_scheduler_velocity(velocity: Tensor) -> Tensor:
    """diffusers' flow-matching target noise - data from native velocity, and back (an involution)."""
    return -velocity


def scheduler_sigmas(num_steps: int) -> list[float]:
    """Unshifted sigmas for `FlowMatchEulerDiscreteScheduler.set_timesteps(sigmas=...)`.

    The scheduler appends the final 0 itself and applies its own shift (`sigma_shift` of the native one);
    its own grid would start elsewhere.
    """
    if num_steps < 1:
        raise ValueError(f"Sampling needs at least 1 step; got {num_steps}.")
    return to_sigma(time_grid(num_steps + 1)[:-1]).tolist()
