"""A micro-batch, and the training sets that give it."""

from torch import Tensor
from torch.utils.data import Dataset

Batch = dict[str, Tensor]
"""Tensors of samples by name. "position", int64 [B], says which ones: everything random about a sample follows from
its position."""


class TrainingSet(Dataset[Batch]):
    """Samples by position in the endless training sequence 0, 1, 2, ... that `feed` walks along.

    A set decides by an order (`train.order`) which sample stands at a position, and draws what is random about this
    visit from the position alone, so that batches do not depend on how many processes share them or on where a run
    was resumed.
    """

    def __getitems__(self, positions: list[int]) -> Batch:
        """The samples at `positions` as one batch; holds "position", int64 [B]."""
        raise NotImplementedError
