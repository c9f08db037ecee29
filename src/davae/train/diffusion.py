"""DiT fine-tuning: flow matching on cached latents with the detail loss fading in (method, Eq. 10-12)."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import Dataset

from davae.backbones.registry import backbone_of
from davae.core.config import Config
from davae.core.flow import interpolate, velocity
from davae.core.layout import LatentLayout
from davae.core.losses import velocity_cosine, velocity_mse
from davae.core.randomness import generator, normal, uniform
from davae.core.schedules import detail_weight, logit_normal_time
from davae.core.widen import Init
from davae.data.latents import LatentCache
from davae.train.feed import Batch, Order
from davae.train.loop import Learner, LoopConfig, Loss


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Config):
    """LoRA (peft) on the family's targets; patch embedder and output head are trained in full beside it."""

    rank: int = 256
    alpha: float | None = None
    """null takes the rank."""
    targets: tuple[str, ...] | None = None
    """null takes the family's own."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(LoopConfig):
    """Training of a diffusion transformer on a latent cache."""

    detail_warmup_steps: int = 10_000
    """Steps over which the weight of the detail loss rises along a cosine from 0 to 1 (Eq. 12)."""
    time_mean: float = 0.0
    """Mean of the logit-normal training times (native time, 1 = data)."""
    time_std: float = 1.0
    cosine_weight: float = 1.0
    """Weight of the velocity direction loss; 0 leaves it out."""
    cosine_masked: bool = True
    """Whether the direction loss respects the detail weight. false is the authors' form, which lets the detail
    channels in from the first step."""
    label_dropout: float = 0.1
    """Share of samples trained without their label, for classifier-free guidance."""
    init: Init = "zero"
    """How the new channels of the transformer start."""
    lora: LoraSettings | None = None
    """null trains every weight."""
    flips: bool = True
    """Use mirrored latents for half of the samples."""


class LatentSet(Dataset):
    """Cached latents for training: "latent" [B, C + D, h, w] as the transformer sees it, "label", "position".

    The detail channels are drawn from their posterior anew at every visit.
    """

    def __init__(self, cache: LatentCache, seed: int, flips: bool) -> None:
        self.cache, self.seed, self.flips = cache, seed, flips
        self.order = Order(len(cache), seed)
        self.labels = torch.tensor(cache.manifest.labels)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitems__(self, positions: list[int]) -> Batch:
        """See `TrainingSet`."""
        indices = self.order.indices(positions)
        flipped = (uniform(self.seed, "flip", positions) < 0.5).tolist() if self.flips else None
        mean, logvar = self.cache.moments(indices, flipped)
        layout = self.cache.manifest.layout
        if layout.detail_channels:
            base, detail = layout.split(mean)
            noise = normal(self.seed, "posterior", positions, detail.shape[1:])
            mean = layout.join(base, detail + (0.5 * logvar).exp() * noise)
        return {
            "latent": self.cache.normalise(mean),
            "label": self.labels[indices],
            "position": torch.tensor(positions),
        }


class DiffusionTask:
    """Rectified flow on latents. One learner: "transformer".

    Args:
        transformer: already widened (and with adapters, see `prepare_lora`).
        layout: of the latents.
        config: see `DiffusionConfig`.
        seed: of noise, times and label dropout.
    """

    def __init__(self, transformer: Any, layout: LatentLayout, config: DiffusionConfig, seed: int) -> None:
        if transformer.config.in_channels != layout.channels:
            raise ValueError(
                f"The transformer takes {transformer.config.in_channels} latent channels, the latents have "
                f"{layout.channels} ({layout.base_channels} base + {layout.detail_channels} detail). "
                f"Widen it with davae.widen(transformer, detail_channels={layout.detail_channels})."
            )
        backbone = backbone_of(transformer)
        if backbone.velocity is None:
            raise ValueError(f"Fine-tuning of a {backbone.class_name} on a latent cache is not available yet.")
        self.layout, self.config, self.seed = layout, config, seed
        self._velocity = backbone.velocity
        self._null_class = transformer.null_class
        self.state: dict[str, Tensor] = {}
        self.learners = {"transformer": Learner(transformer, config.optim, config.ema_decay, config.ema_ramp)}

    def is_active(self, learner: str, step: int) -> bool:
        """Always."""
        return True

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """Weighted velocity MSE plus direction loss; base and detail are logged unweighted."""
        data, positions = batch["latent"], batch["position"].tolist()
        noise, time = self._draws(positions, data)
        labels = self._dropped_labels(batch["label"], positions)
        target = velocity(data, noise)
        predicted = self._velocity(network, interpolate(data, noise, time), time, {"label": labels}).float()

        weight = detail_weight(step, self.config.detail_warmup_steps) if self.layout.detail_channels else 1.0
        weights = None if weight == 1.0 else self.layout.channel_weights(weight).to(data.device)
        loss = velocity_mse(predicted, target, weights).mean()
        values = self._unweighted(predicted.detach(), target)
        if self.layout.detail_channels:
            values["detail_weight"] = loss.new_tensor(weight)
        if self.config.cosine_weight > 0:
            cosine = velocity_cosine(predicted, target, weights if self.config.cosine_masked else None).mean()
            values["cosine"] = cosine.detach()
            loss = loss + self.config.cosine_weight * cosine
        return loss, values

    def _draws(self, positions: list[int], data: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.empty(data.shape)
        normals = torch.empty(len(positions))
        for row, position in enumerate(positions):
            source = generator(self.seed, "flow", position)
            normals[row] = torch.randn((), generator=source)
            torch.randn(data.shape[1:], generator=source, out=noise[row])
        time = logit_normal_time(normals, self.config.time_mean, self.config.time_std)
        return noise.to(data.device), time.to(data.device)

    def _dropped_labels(self, labels: Tensor, positions: list[int]) -> Tensor:
        dropped = uniform(self.seed, "label dropout", positions) < self.config.label_dropout
        return torch.where(dropped.to(labels.device), self._null_class, labels)

    def _unweighted(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        error = (predicted - target).square()
        base, detail = self.layout.split(error)
        values = {"loss_base": base.mean()}
        if self.layout.detail_channels:
            values["loss_detail"] = detail.mean()
        return values


def prepare_lora(transformer: Any, settings: LoraSettings, seed: int) -> Any:
    """Freeze a transformer, inject LoRA on its targets, and free its patch embedder and output head.

    Works on families without `add_adapter` too; the heads are named by exact path, because peft's
    `modules_to_save` would match deeper layers of the same name.
    """
    backbone = backbone_of(transformer)
    targets = settings.targets or backbone.lora_modules(transformer)
    transformer.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer)
    for path in backbone.heads:
        transformer.get_submodule(path).requires_grad_(True)
    return transformer


def merge_lora(transformer: Any) -> Any:
    """The same model as a plain one: adapters are folded into the weights and their modules removed."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent = transformer.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return transformer
