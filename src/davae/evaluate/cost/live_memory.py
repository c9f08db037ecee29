"""Bytes of the tensors that are alive, counted operation by operation."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the block, and forgets those that are freed.

    Fake and meta tensors count with the bytes that they would take. What a kernel takes while it runs is not seen.

    Args:
        ignored: tensors that were there before.
    """

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        """Most bytes at any time."""
        self._kept = [tensor.untyped_storage() for tensor in ignored]
        self._known: dict[int, object] = {storage._cdata: storage for storage in self._kept}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Let the operation happen, then look at what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:  # else a view, or an operation in place
            self._known[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _drop(self, key: int, size: int) -> None:
        del self._known[key]
        self.bytes -= size
