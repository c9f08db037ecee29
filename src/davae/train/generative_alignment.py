"""The generative term of tokenizer training: the pretrained transformer is to see the detail as it sees the base.

The means of the detail's groups stand for the base latent. Both are noised alike and shown to the frozen transformer;
what it makes of them, its tokens behind a block, is to point the same way. The idea is GRACE's (2026), which shows a
widened transformer the whole latent and learns projections beside it; here nothing is learned but the detail.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from davae.core.flow import interpolate
from davae.core.layout import LatentLayout
from davae.core.losses import token_cosine
from davae.core.randomness import normal
from davae.core.scaling import LatentScaling
from davae.core.schedules import logit_normal_time
from davae.train.balance import Term
from davae.train.objective import GenerativeAlignConfig

Features = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents [B, C, h, w] as the transformer sees them, native times [B]) -> tokens [B, N, D]."""


class GenerativeAlignment:
    """The term of one training.

    Args:
        config: weight, and the times at which latents are compared.
        features: of the frozen transformer, see `backbones.features`.
        layout: base and detail channels; each base channel needs at least one of the detail.
        scaling: of the base latent for the transformer; None where the tokenizer's base latent has it already.
        seed: of noise and times.
    """

    def __init__(
        self,
        config: GenerativeAlignConfig,
        features: Features,
        layout: LatentLayout,
        scaling: LatentScaling | None,
        seed: int,
    ) -> None:
        self.config, self.features, self.layout = config, features, layout
        self.scaling, self.seed = scaling, seed

    def term(self, base: Tensor, detail: Tensor, positions: Sequence[int], parameter: nn.Parameter) -> Term:
        """1 - cosine of the tokens, mean over tokens and samples.

        Args:
            base: base latents [B, C, h, w].
            detail: latents [B, D, h, w] of the same images.
            positions: of the images in the training sequence, from which noise and time are drawn.
            parameter: of the layer that makes the detail, where an adaptive weight is measured.
        """
        config, seed = self.config, self.seed
        noise = normal(seed, "generative noise", positions, base.shape[1:]).to(base)
        draws = normal(seed, "generative time", positions, ()).to(base)
        time = logit_normal_time(draws, config.time_mean, config.time_std)
        with torch.no_grad():
            target = self._tokens(base, noise, time)
        loss = token_cosine(self._tokens(self.layout.group_mean(detail), noise, time), target)
        return Term("generative", loss, config.weight, parameter if config.adaptive else None, maximum=1e8)

    def _tokens(self, latent: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        scaled = latent if self.scaling is None else self.scaling.normalise(latent)
        return self.features(interpolate(scaled, noise, time), time)
