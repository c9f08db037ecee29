"""Drawing with a detail that lags behind the base in time: a scheduler that steps the two apart."""

from typing import Any, Literal

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from torch import Tensor

from davae.core.flow import clock_times, from_sigma, lag_clock, to_sigma
from davae.core.layout import LatentLayout
from davae.models.diffusers_model import register_to_config


class DetailLagScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler steps of flow matching on which the detail of a latent follows its base, `detail_lag` behind.

    It takes the place of `FlowMatchEulerDiscreteScheduler` in stock pipelines, and as many steps. The grid of that
    scheduler (its shift, dynamic or not, included) becomes that of a clock which both follow, see `core.flow`:
    `sigmas` and `timesteps` are the clock's. They are the base's while it moves, and go on below 0 while the detail
    alone does, so that the transformer is told by one number how far both have come.

    Args:
        base_channels: C of the latents.
        detail_channels: D of the latents.
        detail_lag: between 0, where every step is that of `FlowMatchEulerDiscreteScheduler`, and 1, where the detail
            waits until the base is drawn. The transformer was trained with it.
        **settings: the others are those of `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: the lag is not in [0, 1], or the settings ask for other steps than Euler's.
    """

    @register_to_config
    def __init__(
        self,
        base_channels: int,
        detail_channels: int,
        detail_lag: float = 0.0,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        stochastic_sampling: bool = False,
    ) -> None:
        if not 0 <= detail_lag <= 1:
            raise ValueError(f"detail_lag must be between 0 and 1; got {detail_lag}.")
        if invert_sigmas or stochastic_sampling:
            raise ValueError(
                "A detail that lags is drawn by Euler steps from noise to data; got invert_sigmas or "
                "stochastic_sampling. Leave them false."
            )
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
        )
        self.layout = LatentLayout(base_channels, detail_channels)
        self._start_clock()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As the parent's; the grid that comes of it is walked by the clock."""
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)  # type: ignore[arg-type]
        self._start_clock()

    def step(  # type: ignore[override]  # of the parent's options, those of a step per token have no meaning here
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """One Euler step, each channel from its own sigma to its next.

        Args:
            model_output: velocity in diffusers' sign, [B, C + D, h, w], or packed as FLUX.1 does,
                [B, N, (C + D) * p * p].
            timestep: one of `timesteps`.
            sample: latents of the same shape.
            return_dict: False returns a tuple.

        Raises:
            ValueError: the latents have other channels.
        """
        if self.step_index is None:
            self._init_step_index(timestep)  # type: ignore[arg-type]
        now, then = self._sigmas_like(sample)[self.step_index : self.step_index + 2]
        moved = (sample.float() + (then - now) * model_output).to(model_output.dtype)
        self._step_index = self.step_index + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:  # type: ignore[override]
        """Data with the noise of a timestep, for drawings that start on the way (image to image).

        Args:
            sample: data, as in `step`.
            timestep: one of `timesteps` for each sample, [B].
            noise: as `sample`.
        """
        begun = self.begin_index if self.step_index is None else self.step_index
        places = [self.index_for_timestep(time) if begun is None else begun for time in timestep]
        sigma = self._sigmas_like(sample)[places].squeeze(1)
        return sigma * noise + (1 - sigma) * sample

    def _start_clock(self) -> None:
        """Turn the parent's grid of sigmas into the clock's, and into those of the channels [N, C + D]."""
        lag, device = self.config["detail_lag"], self.sigmas.device
        clock = lag_clock(from_sigma(self.sigmas.cpu().double()), lag)  # in fp64, 1 - (1 - sigma) is sigma
        base, detail = (to_sigma(time).to(device, torch.float32) for time in clock_times(clock, lag))
        self.sigmas = to_sigma(clock).to(device, torch.float32)
        self.timesteps = self.sigmas[: len(self.timesteps)] * self.config["num_train_timesteps"]
        self._channel_sigmas = self.layout.spread(base, detail)

    def _sigmas_like(self, sample: Tensor) -> Tensor:
        """Sigmas of the whole grid, each so that it broadcasts over a sample: [N, 1, C + D, 1, 1] or [N, 1, 1, F]."""
        sigmas, channels = self._channel_sigmas.to(sample.device), self.layout.channels
        if sample.ndim == 4 and sample.shape[1] == channels:
            return sigmas[:, None, :, None, None]
        if sample.ndim == 3 and sample.shape[2] % channels == 0:
            return sigmas.repeat_interleave(sample.shape[2] // channels, dim=1)[:, None, None]
        raise ValueError(
            f"This scheduler steps latents of {channels} channels ({self.layout.base_channels} base + "
            f"{self.layout.detail_channels} detail); got shape {tuple(sample.shape)}. Take the scheduler that "
            f"was saved with the pipeline."
        )


# The stored name in model_index.json: diffusers looks the class up as davae.DetailLagScheduler.
DetailLagScheduler.__module__ = "davae"


def lagging(scheduler: Any, layout: LatentLayout, lag: float) -> Any:
    """A pretrained pair's scheduler for latents whose detail lags; itself where none does.

    Raises:
        ValueError: it does not draw by flow matching.
    """
    if lag == 0:
        return scheduler
    config = {**scheduler.config}
    if config.get("use_flow_sigmas"):  # SANA's DPM-Solver: its steps of higher order look back at one sigma for all
        config = {"num_train_timesteps": config["num_train_timesteps"], "shift": config["flow_shift"]}
    elif type(scheduler) is not FlowMatchEulerDiscreteScheduler:
        raise ValueError(
            f"A detail that lags is drawn by Euler steps of flow matching; got a {type(scheduler).__name__}, allowed "
            f"is a FlowMatchEulerDiscreteScheduler. Set detail_lag to 0, or take another pair."
        )
    channels = {"base_channels": layout.base_channels, "detail_channels": layout.detail_channels}
    return DetailLagScheduler.from_config(config, **channels, detail_lag=lag)
