"""From noise to latents: the Euler loop on a diffusers flow-matching scheduler."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from davae.core.flow import from_sigma, scheduler_sigmas, to_scheduler_velocity
from davae.sampling.guidance import Guidance, guide_all, in_interval

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy [B, K, h, w], native time [B], labels [B]) -> native velocity. Where the detail lags, the time is the
clock's, see `core.flow`."""


def draw_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Noise [len(seeds), *shape], each image from its own generator: the same in any batch.

    The first channels of a wider latent get the same numbers as a narrower one.
    """
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def denoise(
    velocity: Velocity,
    latents: Tensor,
    labels: Tensor,
    null_labels: Tensor,
    scheduler: Any,
    num_steps: int,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    guidance: Guidance = guide_all,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Integrate the velocity field from noise (t = 0) to data (t = 1); float32 latents [B, K, h, w].

    Args:
        velocity: the model.
        latents: noise [B, K, h, w].
        labels: class of each image [B].
        null_labels: the class that means "none" [B].
        scheduler: a `FlowMatchEulerDiscreteScheduler`, or one that steps base and detail apart
            (`DetailLagScheduler`); its shift is in sigma (`core.flow.sigma_shift`).
        num_steps: Euler steps.
        guidance_scale: 1 switches guidance off, and with it the second half of the work.
        guidance_interval: native times between which guidance is on.
        guidance: how two predictions become one.
        on_step: called with the step number and the latents after each step.
    """
    # The state is float32 whatever the model computes in: rounding to bfloat16 would add up over the steps.
    latents = latents.float()
    scheduler.set_timesteps(sigmas=scheduler_sigmas(num_steps), device=latents.device)
    for step, (timestep, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False)):
        time = from_sigma(torch.full((len(latents),), sigma, device=latents.device))
        if guidance_scale != 1.0 and in_interval(float(time[0]), guidance_interval):
            both = velocity(latents.repeat(2, 1, 1, 1), time.repeat(2), torch.cat([labels, null_labels]))
            conditional, unconditional = both.chunk(2)
            predicted = guidance(conditional, unconditional, guidance_scale)
        else:
            predicted = velocity(latents, time, labels)
        latents = scheduler.step(to_scheduler_velocity(predicted.float()), timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(step, latents)
    return latents
