"""Exponential moving average of trained weights: constant decay, no hidden ramp; what a short run makes of it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_FORGOTTEN = 0.1
"""Share of the initial weights in an average that does no harm."""


class ExponentialAverage:
    """Shadow of the trained parameters of a network: shadow <- decay * shadow + (1 - decay) * weight.

    Args:
        network: its parameters that require a gradient are followed.
        decay: in [0, 1). The average starts at the weights themselves, see `initial_share`.
        ramp: the decay of step n is min(decay, (1 + n) / (10 + n)), which forgets the start sooner in short runs.

    Raises:
        ValueError: the decay is out of range.
    """

    def __init__(self, network: nn.Module, decay: float, ramp: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must lie in [0, 1); got {decay}.")
        self.decay, self.ramp = decay, ramp
        self._weights = dict(trained_parameters(network))
        self.shadow = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights once, after the optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.ramp else self.decay
        weights = [weight.detach().float() for weight in self._weights.values()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network carries the averaged weights inside this block."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(kept)

    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Continue from a stored shadow.

        Raises:
            ValueError: it is the average of other weights.
        """
        if shadow.keys() != self.shadow.keys():
            raise ValueError(
                f"The stored average follows other weights: {sorted(shadow.keys() ^ self.shadow.keys())}."
            )
        for name, tensor in shadow.items():
            self.shadow[name].copy_(tensor)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])


def initial_share(decay: float, steps: int, ramp: bool = False) -> float:
    """Share of the initial weights in the average after `steps` updates, in [0, 1]: the product of their decays."""
    ramped = min(steps, max(math.ceil((10 * decay - 1) / (1 - decay)), 0)) if ramp else 0
    # The product of (1 + n) / (10 + n) over n < m is m! 9! / (m + 9)!.
    return math.prod(k / (ramped + k) for k in range(1, 10)) * decay ** (steps - ramped)


def advice_on_average(decay: float, steps: int, ramp: bool = False) -> str | None:
    """What to say of an average that a training is too short for; None where the start is as good as forgotten."""
    share = initial_share(decay, steps, ramp)
    if share <= _FORGOTTEN:
        return None
    enough = 1 - _round_up(1 - _FORGOTTEN ** (1 / steps))
    remedy = f"lower ema_decay to {enough:.10g}, which leaves {_FORGOTTEN:.0%}"
    if initial_share(decay, steps, ramp=True) <= _FORGOTTEN:
        remedy = f"set ema_ramp: true, or {remedy}"
    return (
        f"with ema_decay {decay:g} the averaged weights, which are the result, are still {share:.0%} the initial "
        f"ones after {steps:,} steps; {remedy}."
    )


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that require a gradient, by name, each once."""
    return ((name, weight) for name, weight in network.named_parameters() if weight.requires_grad)


def _round_up(number: float) -> float:
    """To two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
