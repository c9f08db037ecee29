"""LPIPS as a column of a table, beside the metrics that need no weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from davae.core.pixels import unit_to_signed
from davae.evaluate.metric import PairedMetric
from davae.models.chunking import images_at_once
from davae.models.perceptual import LPIPS


def column(network: LPIPS) -> PairedMetric:
    """The distance by a network, which computes where it is, on as many images as an autoencoder would take."""

    def distance(images: Tensor, originals: Tensor) -> Tensor:
        device = next(network.buffers(), images).device
        at_once = images_at_once(images.shape[2], images.shape[3], limit=len(images))
        pairs = zip(images.split(at_once), originals.split(at_once), strict=True)
        parts = [network(*(unit_to_signed(part.to(device)) for part in pair)) for pair in pairs]
        return torch.cat(parts).cpu()

    return PairedMetric("LPIPS", distance, "v0.1, VGG16, on the clamped images", "lower")


def at_hand(
    vgg: Path | None = None, linear: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> LPIPS | None:
    """The network, or None where its weights are not on this machine; nothing is fetched.

    Args:
        vgg: where its weights are; None looks in the caches.
        linear: likewise.
        say: is told what is missing.
    """
    try:
        return LPIPS.from_pretrained(vgg, linear)
    except FileNotFoundError as error:
        say(f"LPIPS is left out. {error}")
        return None
