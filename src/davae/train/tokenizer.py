"""Tokenizer training: reconstruction, KL, detail alignment and an adversarial term (method, Eq. 3-6).

One task serves both the upgraded autoencoder (frozen base, detail encoder, joint decoder) and a plain
autoencoder that is trained from scratch to become somebody's base.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from davae.core.losses import alignment, kl_divergence, kl_divergence_sum
from davae.core.pixels import uint8_to_signed
from davae.core.sharpness import pyramid_distance, spectral_distance
from davae.train.adversary import Adversary
from davae.train.balance import Balance, Term
from davae.train.batch import Batch
from davae.train.generative_alignment import GenerativeAlignment
from davae.train.objective import ReconstructionConfig, TokenizerConfig
from davae.train.reconstructor import Reconstruction, Reconstructor
from davae.train.task import Learner, Loss


class Perceptual(Protocol):
    """A distance of images [B, 3, H, W] in [-1, 1]: [B]."""

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances of pairs."""


class TokenizerTask:
    """The objective, on batches of an `ImageSet`.

    Learners: "autoencoder", and "discriminator" where the adversarial term is on. The former hands "real" and "fake"
    on to the latter: images and reconstructions [B, 3, H, W], in [-1, 1] and nominally so.

    Args:
        reconstructor: what is trained.
        config: weights of the terms; of `TokenizerConfig` the alignment is read too.
        perceptual: distance network, frozen and in eval mode; None leaves the term out.
        reduce: mean of a tensor over processes, so that adaptive weights are those of the global batch.
        generative: alignment of the detail by a frozen transformer; None leaves the term out.
    """

    def __init__(
        self,
        reconstructor: Reconstructor,
        config: ReconstructionConfig,
        perceptual: Perceptual | None = None,
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        generative: GenerativeAlignment | None = None,
    ) -> None:
        self.reconstructor, self.config = reconstructor, config
        self.perceptual, self.generative = perceptual, generative
        self.state: dict[str, Tensor] = {}
        self.balance = Balance(config.adaptive_every, self.state, reduce)
        self.learners = {
            "autoencoder": Learner(reconstructor.network, config.optim, config.ema_decay, config.ema_ramp),
        }
        self.adversary: Adversary | None = None
        if config.adversarial is not None:
            self.adversary = Adversary(config.adversarial, self.state, reduce)
            self.learners["discriminator"] = Learner(self.adversary.network, config.adversarial.optim)

    def is_active(self, learner: str, step: int) -> bool:
        """The discriminator waits for its start step."""
        return learner == "autoencoder" or (self.adversary is not None and self.adversary.runs(step))

    def loss(self, learner: str, network: nn.Module, batch: Batch, step: int) -> Loss:
        """See `Task`. The discriminator judges the reconstructions that the autoencoder just made."""
        if learner == "autoencoder":
            return self._autoencoder_loss(network, batch, step)
        assert self.adversary is not None
        return Loss(self.adversary.discriminator_loss(network, batch["real"], batch["fake"]))

    def _autoencoder_loss(self, network: nn.Module, batch: Batch, step: int) -> Loss:
        images = uint8_to_signed(batch["image"])
        positions = batch["position"].tolist()
        result = self.reconstructor.reconstruct(network, images, positions)
        fakes = result.sample.float()

        reference, values = self._reconstruction(images, fakes)
        kl = self._kl(result)
        values["kl"] = kl.detach()
        total = reference + self.config.kl_weight * kl

        terms = [
            *(*self._alignment(result), *self._generative(result, positions)),
            *(*self._vision(result, step), *self._adversarial(fakes, step)),
        ]
        weights = self.balance.weights(step, reference, [term for term in terms if term.weight != 0])
        for term in terms:  # a term of weight 0 is measured all the same
            values[term.name] = term.loss.detach()
            if term.weight != 0:
                total = total + weights[term.name] * term.loss
            if term.weight != 0 and term.parameter is not None:
                values[f"{term.name}_weight"] = weights[term.name]
        return Loss(total, values, outputs={"real": images, "fake": fakes.detach()})

    def _reconstruction(self, images: Tensor, fakes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The term that adaptive weights are measured against (L1 and other distances), and journal values."""
        config = self.config
        distances = {"l1": (config.l1_weight, (images - fakes).abs().mean())}
        if config.pyramid is not None:
            distances["pyramid"] = (config.pyramid.weight, pyramid_distance(fakes, images, config.pyramid.levels))
        if config.spectrum is not None:
            distances["spectrum"] = (config.spectrum.weight, spectral_distance(fakes, images, config.spectrum.focus))
        if self.perceptual is not None and config.perceptual is not None:
            distances["perceptual"] = (config.perceptual.weight, self.perceptual(fakes, images).mean())
        reference = torch.stack([weight * distance for weight, distance in distances.values()]).sum()
        values = {name: distance.detach() for name, (_, distance) in distances.items()}
        values["psnr"] = _psnr(images, fakes)
        if config.reconstruction_reduction == "sum":
            reference = reference * images[0].numel()
        return reference, values

    def _kl(self, result: Reconstruction) -> Tensor:
        mean = result.mean.float()
        logvar = torch.zeros_like(mean) if result.logvar is None else result.logvar.float()
        return (kl_divergence if self.config.kl_reduction == "mean" else kl_divergence_sum)(mean, logvar)

    def _alignment(self, result: Reconstruction) -> list[Term]:
        config, layout = self.config, self.reconstructor.layout
        if layout is None or not isinstance(config, TokenizerConfig):
            return []
        if config.align_weight == 0 and layout.detail_channels < layout.base_channels:
            return []  # nothing to measure either: some base channel has no detail channel
        assert result.base is not None
        loss = alignment(layout, result.latent.float(), result.base.float())
        parameter = self.reconstructor.latent_weight if config.align_adaptive else None
        return [Term("align", loss, config.align_weight, parameter, maximum=1e8)]

    def _generative(self, result: Reconstruction, positions: Sequence[int]) -> list[Term]:
        if self.generative is None:
            return []
        assert result.base is not None
        base, detail = result.base.float(), result.latent.float()
        return [self.generative.term(base, detail, positions, self.reconstructor.latent_weight)]

    def _vision(self, result: Reconstruction, step: int) -> list[Term]:
        if self.reconstructor.vision is None:
            return []
        assert result.vision is not None
        return [self.reconstructor.vision.term(result.vision, step, self.reconstructor.latent_weight)]

    def _adversarial(self, fakes: Tensor, step: int) -> list[Term]:
        if self.adversary is None or not self.adversary.runs(step):
            return []
        config = self.adversary.config
        parameter = self.reconstructor.last_weight if config.adaptive else None
        return [Term("adversarial", self.adversary.generator_loss(fakes), config.weight, parameter)]


def _psnr(images: Tensor, fakes: Tensor) -> Tensor:
    """Mean PSNR in dB of images in [-1, 1], for the journal."""
    error = (images - fakes.detach().clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()
