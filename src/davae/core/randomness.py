"""Owner of randomness: every draw is a function of (seed, purpose, step or sample id), never carried state.

Exact resume and independence of the number of processes follow at once: nobody has to save a generator.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

Key = int | str


def generator(*key: Key) -> torch.Generator:
    """A CPU generator seeded by the whole key, for example (seed, "noise", sample)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def normal(seed: int, purpose: str, samples: Sequence[Key], shape: Sequence[int]) -> Tensor:
    """Standard normals [len(samples), *shape], row i a function of (seed, purpose, samples[i]) alone."""
    rows = [torch.randn(tuple(shape), generator=generator(seed, purpose, sample)) for sample in samples]
    return torch.stack(rows)


def uniform(seed: int, purpose: str, samples: Sequence[Key]) -> Tensor:
    """Uniform numbers in [0, 1), [len(samples)], row i a function of (seed, purpose, samples[i]) alone."""
    return torch.stack([torch.rand((), generator=generator(seed, purpose, sample)) for sample in samples])


def permutation(seed: int, purpose: str, epoch: int, size: int) -> Tensor:
    """The order in which an epoch visits `size` samples, int64 [size]."""
    return torch.randperm(size, generator=generator(seed, purpose, epoch))
