"""Reconstruction and decoder sensitivity (method, S3): what the detail channels do for the image."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from davae.core.pixels import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from davae.data.image_source import ImageSource
from davae.evaluate.generation import with_random_detail
from davae.evaluate.metrics import PAIRED
from davae.evaluate.reconstruction_fid import ReconstructionFID
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
    drawn = with_random_detail(layout, layout.join(base, mean), ids, seed)
    _, random = layout.split(autoencoder.raw_scaling.denormalise(drawn))
    for variant, detail in (("full", mean), ("zero detail", torch.zeros_like(mean)), ("random detail", random)):
        yield variant, signed_to_unit(autoencoder.decode(autoencoder.store(base, detail), return_dict=False)[0])
    yield "base upsampled", signed_to_unit(autoencoder.preview(autoencoder.store(base, mean)))


def measure_reconstruction(
    autoencoder: AutoencoderDA,
    source: ImageSource,
    size: int,
    batch_size: int,
    seed: int = 0,
    shown: int = 6,
    fid: ReconstructionFID | None = None,
) -> ReconstructionReport:
    """The metrics of `PAIRED` of every variant over a source, and rFID in the same pass.

    Args:
        autoencoder: trained and calibrated.
        source: images never trained on.
        size: side, pixels.
        batch_size: images at once.
        seed: of the random detail.
        shown: images kept for the figure.
        fid: None leaves rFID out.
    """
    scores: dict[str, list[Tensor]] = {variant: [] for variant in VARIANTS}
    strips: dict[str, list[Tensor]] = {}
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        pixels = source.images(indices, size)
        target = uint8_to_unit(pixels)
        batch = unit_to_signed(target).to(autoencoder.device)
        rebuilt = dict(reconstruct(autoencoder, batch, [source.ids[index] for index in indices], seed))
        for variant, images in rebuilt.items():
            scores[variant].append(torch.stack([metric.measure(images.cpu(), target) for metric in PAIRED]))
        if fid is not None:
            fid.originals(target, start)
            for variant, images in rebuilt.items():
                fid.rebuilt(variant, images, start)
        for variant, images in {"input": target, **rebuilt}.items():
            strips.setdefault(variant, []).append(unit_to_uint8(images[:shown]))
    protocol: dict[str, object] = {"images": len(source), "size": size}
    protocol |= {metric.key: metric.protocol for metric in PAIRED}
    measurements = []
    for variant, parts in scores.items():
        row_protocol = {**protocol, "variant": VARIANTS[variant], "seed": seed}
        for metric, mean in zip(PAIRED, torch.cat(parts, dim=1).mean(dim=1).tolist(), strict=True):
            measurements.append(
                Measurement("Reconstruction", variant, metric.name, mean, metric.unit, metric.better, row_protocol)
            )
        score = None if fid is None else fid.score(variant)
        if fid is not None and score is not None:
            row_protocol = {**row_protocol, "rfid": fid.protocol}
            measurements.append(Measurement("Reconstruction", variant, *score, "", "lower", row_protocol))
    return ReconstructionReport(measurements, {name: torch.cat(parts)[:shown] for name, parts in strips.items()})
