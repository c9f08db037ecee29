"""Classifier-free guidance as functions of two predictions. A pipeline takes one as an argument."""

from collections.abc import Callable

from torch import Tensor

Guidance = Callable[[Tensor, Tensor, float], Tensor]
"""(conditional, unconditional, scale) -> guided prediction, all [B, K, h, w]."""


def guide_all(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """v_u + scale * (v_c - v_u) on every channel."""
    return unconditional + scale * (conditional - unconditional)


def guide_first(channels: int) -> Guidance:
    """Guidance on the first `channels` channels alone, the others stay conditional.

    Upstream LightningDiT guides 3 of its 32 channels, a habit inherited from DiT; its published scales (6.7, 10)
    belong to that. `guide_first(3)` reproduces them.
    """

    def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        head = guide_all(conditional[:, :channels], unconditional[:, :channels], scale)
        guided = conditional.clone()
        guided[:, :channels] = head
        return guided

    return guide


def in_interval(time: float, interval: tuple[float, float]) -> bool:
    """Whether guidance is on at a native time (1 = data): start <= t <= end, the start included.

    Past 1, where the detail finishes behind the base (see `core.flow`), it is what it is at 1.
    """
    start, end = interval
    return start <= min(time, 1.0) <= end
