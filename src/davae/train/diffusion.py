"""DiT fine-tuning: flow matching on latents with the detail loss fading in (method, Eq. 10-12)."""

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from davae.backbones.registry import BACKBONES, backbone_of
from davae.core.flow import (
    clock_times,
    interpolate,
    lag_clock,
    per_sample,
    predicted_data,
    shift_time,
    sigma_shift,
    velocity,
)
from davae.core.layout import LatentLayout
from davae.core.losses import velocity_cosine, weighted_mse
from davae.core.schedules import detail_weight, logit_normal_time, min_snr_weight
from davae.train.batch import Batch
from davae.train.diffusion_settings import DiffusionConfig
from davae.train.task import Learner, Loss


class DiffusionTask:
    """Rectified flow on the batches of a `LatentSet`. One learner: "transformer".

    Args:
        transformer: already widened (and with adapters, see `backbones.lora`).
        layout: of the latents.
        config: see `DiffusionConfig`.

    Raises:
        ValueError: the transformer takes other latents, or its family does not predict a velocity.
    """

    def __init__(self, transformer: ModelMixin, layout: LatentLayout, config: DiffusionConfig) -> None:
        backbone = backbone_of(transformer)
        channels = backbone.latent_channels(transformer.config)
        if channels != layout.channels:
            raise ValueError(
                f"The transformer takes {channels} latent channels, the latents have {layout.channels} "
                f"({layout.base_channels} base + {layout.detail_channels} detail). "
                f"Widen it with davae.widen(transformer, detail_channels={layout.detail_channels})."
            )
        if backbone.velocity is None:
            trained = sorted(name for name, family in BACKBONES.items() if family.velocity is not None)
            raise ValueError(
                f"Fine-tuning of a {backbone.class_name} (it predicts {backbone.convention}) is not available; "
                f"allowed are {', '.join(trained)}."
            )
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        self.layout, self.config = layout, config
        self._velocity = backbone.velocity
        self.state: dict[str, Tensor] = {}
        self.learners = {"transformer": Learner(transformer, config.optim, config.ema_decay, config.ema_ramp)}

    def is_active(self, learner: str, step: int) -> bool:
        """Always."""
        return True

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Weighted squared error plus direction loss; the velocity's errors are logged unweighted.

        The weights of the channels have mean 1, those of the samples (min-SNR) have not. The transformer is told the
        clock (see `core.flow`): the time of the base, which goes on past 1 while the detail alone is on its way.
        """
        data, noise = batch["latent"], batch["noise"]
        clock = lag_clock(self.times(batch["normal"]), self.config.detail_lag)
        time = self._times_of_channels(clock)
        noisy, target = interpolate(data, noise, time), velocity(data, noise)
        predicted = self._velocity(network, noisy, clock, _conditions(batch)).float()

        weight = self._detail_weight(step)
        weights = None if weight == 1.0 else self.layout.channel_weights(weight)
        moving = _moving(time)
        gamma, objective = self.config.min_snr_gamma, self.config.objective
        emphasis = moving if gamma is None else min_snr_weight(time, gamma, objective)
        if objective == "data":
            errors = weighted_mse(predicted_data(noisy, predicted, time), data, weights, emphasis)
        else:
            errors = weighted_mse(predicted, target, weights, emphasis)
        loss = errors.mean()
        values = self._unweighted(predicted.detach(), target, moving)
        if self.layout.detail_channels:
            values["detail_weight"] = loss.new_tensor(weight)
        if self.config.cosine_weight > 0:
            shares = _product(weights if self.config.cosine_masked else None, moving)
            cosine = velocity_cosine(predicted, target, shares).mean()
            values["cosine"] = cosine.detach()
            loss = loss + self.config.cosine_weight * cosine
        return Loss(loss, values)

    def times(self, normals: Tensor) -> Tensor:
        """Native training times [B] of standard normals [B]: logit-normal, then shifted."""
        time = logit_normal_time(normals, self.config.time_mean, self.config.time_std)
        return shift_time(time, sigma_shift(self.config.sigma_shift))

    def _times_of_channels(self, clock: Tensor) -> Tensor:
        """Native times: [B] for all channels, or [B, C + D] where the detail lags."""
        lag = self.config.detail_lag
        return self.layout.spread(*clock_times(clock, lag)) if lag else clock

    def _detail_weight(self, step: int) -> float:
        if not self.layout.detail_channels:
            return 1.0
        return detail_weight(step, self.config.detail_warmup_steps, end=self.config.detail_weight)

    def _unweighted(self, predicted: Tensor, target: Tensor, moving: Tensor | None) -> dict[str, Tensor]:
        error = (predicted - target).square()
        if moving is not None:  # the mean is of the samples whose channel is on its way
            error = error * per_sample(moving * (len(moving) / moving.sum(dim=0).clamp(min=1)), error)
        base, detail = self.layout.split(error)
        values = {"loss_base": base.mean()}
        if self.layout.detail_channels:
            values["loss_detail"] = detail.mean()
        return values


def _moving(time: Tensor) -> Tensor | None:
    """1 where a channel has not arrived, of times [B, C + D]; None where all channels have one time, [B].

    The velocity of a base that has arrived moves nothing, and what is asked of it, the noise, can no longer be seen.
    That of a detail still waiting is wanted: the step that sets it in motion begins while it waits.
    """
    return None if time.ndim == 1 else (time < 1).float()


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.to(second.device) * second


def _conditions(batch: Batch) -> dict[str, Tensor]:
    """The conditioning of a batch; embeddings come in the precision they are stored in."""
    given = {key: tensor for key, tensor in batch.items() if key not in ("latent", "noise", "normal", "position")}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in given.items()}
