"""Exponential moving average of trained weights: constant decay, no hidden ramp."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """Shadow of the trained parameters of a network: shadow <- decay * shadow + (1 - decay) * weight.

    Args:
        network: its parameters that require a gradient are followed.
        decay: in [0, 1). The average starts at the weights themselves; with `ramp` the decay of step n is
            min(decay, (1 + n) / (10 + n)), which forgets the start sooner in short runs.
        ramp: see above.
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
        """Continue from a stored shadow."""
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


def trained_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that require a gradient, by name, each once."""
    return ((name, weight) for name, weight in network.named_parameters() if weight.requires_grad)
