"""The adversarial term: a PatchGAN that judges reconstructions, with the LeCam regulariser where it is asked for."""

from collections.abc import Callable

from torch import Tensor, nn

from davae.core.losses import hinge_discriminator, hinge_generator, lecam
from davae.models.discriminator import PatchDiscriminator
from davae.train.objective import AdversarialConfig

_REAL, _FAKE = "lecam.real", "lecam.fake"


class Adversary:
    """A discriminator and its losses.

    Args:
        config: weight, start and regulariser.
        state: holds LeCam's anchors, the running means of the discriminator's answers; part of the checkpoint.
        reduce: mean over processes.
    """

    def __init__(
        self, config: AdversarialConfig, state: dict[str, Tensor], reduce: Callable[[Tensor], Tensor]
    ) -> None:
        self.config, self.state, self.reduce = config, state, reduce
        self.network = PatchDiscriminator(width=config.width)

    def runs(self, step: int) -> bool:
        """Whether it has begun."""
        return step >= self.config.start_step

    def generator_loss(self, fakes: Tensor) -> Tensor:
        """What the autoencoder is told: -mean D(fakes), fp32."""
        # Here the discriminator is a judge; its own gradients come from its own loss.
        self.network.requires_grad_(False)
        loss = hinge_generator(self.network(fakes).float())
        self.network.requires_grad_(True)
        return loss

    def discriminator_loss(self, network: nn.Module, images: Tensor, fakes: Tensor) -> Tensor:
        """Hinge loss of `network` (the discriminator, perhaps wrapped), and LeCam's pull towards the anchors."""
        real, fake = network(images).float(), network(fakes).float()
        loss = hinge_discriminator(real, fake)
        if self.config.lecam_weight == 0:
            return loss
        anchors = self._anchors(real.detach().mean(), fake.detach().mean())
        return loss + self.config.lecam_weight * lecam(real, fake, *anchors)

    def _anchors(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        decay = self.config.lecam_decay
        for key, mean in ((_REAL, real), (_FAKE, fake)):
            before = self.state.get(key, mean.new_zeros(()))
            self.state[key] = decay * before + (1 - decay) * self.reduce(mean)
        return self.state[_REAL], self.state[_FAKE]
