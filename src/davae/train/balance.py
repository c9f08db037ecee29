"""Adaptive weights: a term pulls at a chosen layer with a set share of the reconstruction's pull (VQGAN, VA-VAE)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from davae.core.losses import gradient_ratio


@dataclass(frozen=True)
class Term:
    """A term of the objective beside the reconstruction.

    Args:
        name: under which its value and weight appear in the journal.
        loss: a scalar.
        weight: its weight, or its share of the reconstruction's gradient norm where `parameter` is given.
        parameter: where gradient norms are compared; None gives a fixed weight.
        maximum: upper clamp of the ratio (1e4 for the adversarial term, 1e8 for alignment).
    """

    name: str
    loss: Tensor
    weight: float
    parameter: nn.Parameter | None = None
    maximum: float = 1e4


class Balance:
    """Measures the gradient ratios of adaptive terms every so many steps and holds them in between.

    A measurement costs one backward pass of the reconstruction down to the earliest chosen layer, and one of each
    term down to its own.

    Args:
        every: steps between measurements.
        state: where ratios are held; part of the checkpoint, so that a resumed run goes on with the same ones.
        reduce: mean of a gradient over processes, so that the ratios are those of the global batch.
    """

    def __init__(self, every: int, state: dict[str, Tensor], reduce: Callable[[Tensor], Tensor]) -> None:
        self.every, self.state, self.reduce = every, state, reduce

    def weights(self, step: int, reference: Tensor, terms: Sequence[Term]) -> dict[str, Tensor]:
        """Weight of each term at a step, by name."""
        adaptive = [term for term in terms if term.parameter is not None]
        due = step % self.every == 0 or any(_key(term) not in self.state for term in adaptive)
        if adaptive and due:
            self._measure(reference, adaptive)
        return {
            term.name: term.weight * (reference.new_ones(()) if term.parameter is None else self.state[_key(term)])
            for term in terms
        }

    def _measure(self, reference: Tensor, terms: Sequence[Term]) -> None:
        chosen = [term.parameter for term in terms if term.parameter is not None]
        references = torch.autograd.grad(reference, chosen, retain_graph=True)  # one pass serves every term
        for term, parameter, target in zip(terms, chosen, references, strict=True):
            (gradient,) = torch.autograd.grad(term.loss, parameter, retain_graph=True)
            ratio = gradient_ratio([self.reduce(target)], [self.reduce(gradient)], maximum=term.maximum)
            self.state[_key(term)] = ratio


def _key(term: Term) -> str:
    return f"ratio.{term.name}"
