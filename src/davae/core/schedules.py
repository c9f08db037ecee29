"""Owner of everything that turns a step or a random number into a weight or a time.

The detail weight w(n) (method, Eq. 12), the density of training times, and learning-rate factors.
"""

import math

import torch
from torch import Tensor

from davae.core.names import Objective


def detail_weight(step: int, warmup_steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """Cosine ramp w(n) of the detail loss from `start` at step 0 to `end` at `warmup_steps`, then constant."""
    if warmup_steps <= 0 or step >= warmup_steps:
        return end
    return start + (end - start) * 0.5 * (1 - math.cos(math.pi * max(step, 0) / warmup_steps))


def normalise_weights(weights: Tensor) -> Tensor:
    """Scale channel weights to mean 1, so that the loss keeps its size while detail fades in: w * C / sum(w).

    Their sum is positive: `LatentLayout.channel_weights` sees to it. Asking here would wait for the device.
    """
    return weights * (weights.numel() / weights.sum())


def logit_normal_time(normals: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Training times t = sigmoid(mean + std * n) from standard normals n (LightningDiT, SD3)."""
    return torch.sigmoid(mean + std * normals)


def min_snr_weight(time: Tensor, gamma: float, objective: Objective = "data") -> Tensor:
    """Weight of a sample's squared error in native time, shaped as `time`: min(t / (1 - t), gamma) of the data's.

    The text-to-image branch takes the ratio of signal to noise itself, where Min-SNR (Hang et al. 2023) has its
    square. As x_1 = x_t + (1 - t) v, the data's squared error is (1 - t)^2 times the velocity's. Of the velocity's
    the weight is therefore (1 - t)^2 min(t / (1 - t), gamma) = min(t (1 - t), gamma (1 - t)^2): the loss is the same.
    """
    if objective == "data":
        return (time / (1 - time)).clamp(max=gamma)
    return torch.minimum(time * (1 - time), gamma * (1 - time) ** 2)


def learning_rate_factor(step: int, warmup_steps: int = 0, total_steps: int = 0, final: float = 1.0) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine that reaches `final` after the last step."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if final == 1.0 or total_steps <= warmup_steps:
        return 1.0
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
