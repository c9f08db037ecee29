"""DiT fine-tuning: flow matching on latents with the detail loss fading in (method, Eq. 10-12)."""

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from davae.backbones.registry import BACKBONES, backbone_of
from davae.core.flow import interpolate, predicted_data, shift_time, sigma_shift, velocity
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

        The weights of the channels have mean 1, those of the samples (min-SNR) have not.
        """
        data, noise, time = batch["latent"], batch["noise"], self.times(batch["normal"])
        noisy, target = interpolate(data, noise, time), velocity(data, noise)
        predicted = self._velocity(network, noisy, time, _conditions(batch)).float()

        weight = detail_weight(step, self.config.detail_warmup_steps) if self.layout.detail_channels else 1.0
        weights = None if weight == 1.0 else self.layout.channel_weights(weight)
        if self.config.objective == "data":
            errors = weighted_mse(predicted_data(noisy, predicted, time), data, weights)
        else:
            errors = weighted_mse(predicted, target, weights)
        if self.config.min_snr_gamma is not None:
            errors = errors * min_snr_weight(time, self.config.min_snr_gamma)
        loss = errors.mean()
        values = self._unweighted(predicted.detach(), target)
        if self.layout.detail_channels:
            values["detail_weight"] = loss.new_tensor(weight)
        if self.config.cosine_weight > 0:
            cosine = velocity_cosine(predicted, target, weights if self.config.cosine_masked else None).mean()
            values["cosine"] = cosine.detach()
            loss = loss + self.config.cosine_weight * cosine
        return Loss(loss, values)

    def times(self, normals: Tensor) -> Tensor:
        """Native training times [B] of standard normals [B]: logit-normal, then shifted."""
        time = logit_normal_time(normals, self.config.time_mean, self.config.time_std)
        return shift_time(time, sigma_shift(self.config.sigma_shift))

    def _unweighted(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        error = (predicted - target).square()
        base, detail = self.layout.split(error)
        values = {"loss_base": base.mean()}
        if self.layout.detail_channels:
            values["loss_detail"] = detail.mean()
        return values


def _conditions(batch: Batch) -> dict[str, Tensor]:
    """The conditioning of a batch; embeddings come in the precision they are stored in."""
    given = {key: tensor for key, tensor in batch.items() if key not in ("latent", "noise", "normal", "position")}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in given.items()}
