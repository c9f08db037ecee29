"""What a sample is conditioned on in training: its label, or the embeddings of its caption; now and then nothing."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from davae.core.randomness import uniform
from davae.data.prompt_cache import NULL, PromptCache
from davae.train.batch import Batch


class Conditions(Protocol):
    """The conditioning part of a batch."""

    def batch(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """Tensors [B, ...] for samples `indices` at `positions` of the training sequence, some of them dropped."""


class Labels:
    """Class labels: "label", int64 [B].

    Args:
        labels: of every sample.
        null_class: the class that means "none".
        dropout: share of visits without the label, for classifier-free guidance.
        seed: of the dropout.
    """

    def __init__(self, labels: Sequence[int], null_class: int, dropout: float, seed: int) -> None:
        self.labels, self.null_class, self.dropout, self.seed = torch.tensor(labels), null_class, dropout, seed

    def batch(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """See `Conditions`."""
        dropped = _dropped(self.seed, positions, self.dropout)
        return {"label": torch.where(dropped, self.null_class, self.labels[list(indices)])}


class Prompts:
    """Embeddings of captions, by the names that the pipeline's call gives them.

    Of several captions a sample has one is drawn at every visit.

    Args:
        cache: holds the embeddings of every sample and of the empty prompt.
        ids: of every sample.
        dropout: share of visits with the empty prompt, in all text encoders together.
        seed: of the dropout and of which caption is drawn.
    """

    def __init__(self, cache: PromptCache, ids: Sequence[str], dropout: float, seed: int) -> None:
        self.cache, self.ids, self.dropout, self.seed = cache, ids, dropout, seed

    def batch(self, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """See `Conditions`."""
        dropped = _dropped(self.seed, positions, self.dropout).tolist()
        choice = uniform(self.seed, "caption", positions) if self.cache.has_several else None
        ids = [NULL if drop else self.ids[index] for index, drop in zip(indices, dropped, strict=True)]
        return self.cache.embeddings(ids, choice)


def _dropped(seed: int, positions: Sequence[int], rate: float) -> Tensor:
    return uniform(seed, "label dropout", positions) < rate
