"""Reconstruction and decoder sensitivity (method, S3): what the detail channels do for the image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from davae.core.randomness import normal
from davae.data.source import ImageSource
from davae.evaluate.metrics import psnr, ssim
from davae.evaluate.results import Measurement
from davae.models.autoencoder import AutoencoderDA

VARIANTS = {
    "full": "base and detail latent, posterior mode",
    "zero detail": "raw detail latent set to 0",
    "random detail": "detail latent replaced by N(0, 1) in the transformer's units",
    "base upsampled": "base decoder on the base latent, then bicubic: the pretrained pair at the same tokens",
}
"""Row of the table -> how it is made."""


@dataclass
class ReconstructionReport:
    """Measurements, and the first images of every variant for a figure."""

    measurements: list[Measurement]
    strips: dict[str, Tensor]


@torch.no_grad()
def reconstruct(
    autoencoder: AutoencoderDA, images: Tensor, ids: list[str], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """(variant, images in [0, 1]) for a batch of images in [-1, 1]."""
    base, mean, _ = autoencoder.moments(images)
    layout = autoencoder.layout
    noise = normal(seed, "random detail", ids, (layout.detail_channels, *mean.shape[2:])).to(mean)
    random = layout.split(autoencoder.raw_scaling.denormalise(layout.join(base, noise)))[1]
    for variant, detail in (("full", mean), ("zero detail", torch.zeros_like(mean)), ("random detail", random)):
        yield variant, _unit(autoencoder.decode(autoencoder.store(base, detail)).sample)
    yield "base upsampled", _unit(autoencoder.preview(autoencoder.store(base, mean)))


def measure_reconstruction(
    autoencoder: AutoencoderDA, source: ImageSource, size: int, batch_size: int, seed: int = 0, shown: int = 6
) -> ReconstructionReport:
    """PSNR and SSIM of every variant over a source.

    Args:
        autoencoder: trained and calibrated.
        source: images never trained on.
        size: side, pixels.
        batch_size: images at once.
        seed: of the random detail.
        shown: images kept for the figure.
    """
    scores: dict[str, list[Tensor]] = {variant: [] for variant in VARIANTS}
    strips: dict[str, list[Tensor]] = {}
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        pixels = source.images(indices, size)
        target = pixels.float() / 255
        batch = (target * 2 - 1).to(autoencoder.device)
        rebuilt = dict(reconstruct(autoencoder, batch, [source.ids[index] for index in indices], seed))
        for variant, images in rebuilt.items():
            scores[variant].append(torch.stack([psnr(images.cpu(), target), ssim(images.cpu(), target)]))
        for variant, images in {"input": target, **rebuilt}.items():
            strips.setdefault(variant, []).append((images[:shown].cpu() * 255).round().to(torch.uint8))
    protocol = {
        "images": len(source),
        "size": size,
        "psnr": "mean over images of each image's dB, float images clamped to [0, 1], no 8-bit rounding",
        "ssim": "gaussian 11, sigma 1.5, valid convolution, mean over channels",
    }
    measurements = []
    for variant, parts in scores.items():
        mean_psnr, mean_ssim = torch.cat(parts, dim=1).mean(dim=1).tolist()
        row_protocol = {**protocol, "variant": VARIANTS[variant], "seed": seed}
        measurements += [
            Measurement("Reconstruction", variant, "PSNR", mean_psnr, "dB", "higher", row_protocol),
            Measurement("Reconstruction", variant, "SSIM", mean_ssim, "", "higher", row_protocol),
        ]
    return ReconstructionReport(measurements, {name: torch.cat(parts)[:shown] for name, parts in strips.items()})


def _unit(images: Tensor) -> Tensor:
    return ((images.float() + 1) / 2).clamp(0, 1)
