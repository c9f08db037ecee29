"""Reconstruction and decoder sensitivity (method, S3): what the detail channels do for the image."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from davae.core.pixels import signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from davae.data.image_source import ImageSource
from davae.evaluate import lpips
from davae.evaluate.generation import with_random_detail
from davae.evaluate.metric import PairedMetric
from davae.evaluate.metrics import PAIRED
from davae.evaluate.processes import ALONE, Processes
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.results import Measurement
from davae.models.autoencoder import AutoencoderDA
from davae.models.chunking import chunks
from davae.models.perceptual import LPIPS

T = TypeVar("T")
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
    perceptual: LPIPS | None = None,
    fid: ReconstructionFID | None = None,
    processes: Processes = ALONE,
) -> ReconstructionReport:
    """The metrics of `PAIRED` of every variant over a source, LPIPS and rFID in the same pass.

    Args:
        autoencoder: trained and calibrated.
        source: images never trained on.
        size: side, pixels.
        batch_size: images at once.
        seed: of the random detail.
        shown: images kept for the figure.
        perceptual: distance network, on the autoencoder's device; None leaves LPIPS out.
        fid: with no rows yet; None leaves rFID out.
        processes: that share the batches. The first has the report, the others an empty one.
    """
    metrics = [*PAIRED] if perceptual is None else [*PAIRED, lpips.column(perceptual)]
    scores: list[tuple[int, Tensor]] = []
    strips: list[tuple[int, dict[str, Tensor]]] = []
    for indices in processes.mine(list(chunks(len(source), batch_size))):
        target = uint8_to_unit(source.images(indices, size))
        batch = unit_to_signed(target).to(autoencoder.device)
        rebuilt = dict(reconstruct(autoencoder, batch, [source.ids[index] for index in indices], seed))
        scores.append((indices.start, torch.stack([_values(metrics, rebuilt[name], target) for name in VARIANTS])))
        if fid is not None:
            fid.originals(target, indices.start)
            for variant, images in rebuilt.items():
                fid.rebuilt(variant, images)
        if indices.start < shown:
            pictures = {"input": target, **rebuilt}
            strips.append((indices.start, {name: unit_to_uint8(images[:shown]) for name, images in pictures.items()}))
    distances = {} if fid is None else fid.scores(VARIANTS, processes)
    all_scores, all_strips = (_in_order(processes.gather(parts)) for parts in (scores, strips))
    if processes.rank:
        return ReconstructionReport([], {})
    means = torch.cat(all_scores, dim=2).mean(dim=2)
    protocol: dict[str, object] = {"images": len(source), "size": size}
    protocol |= {metric.key: metric.protocol for metric in metrics}
    measurements = []
    for variant, row in zip(VARIANTS, means.tolist(), strict=True):
        how = {**protocol, "variant": VARIANTS[variant], "seed": seed}
        for metric, mean in zip(metrics, row, strict=True):
            measurements.append(
                Measurement("Reconstruction", variant, metric.name, mean, metric.unit, metric.better, how)
            )
        if (rfid := distances.get(variant)) is not None:
            how = {**how, **rfid.details}
            measurements.append(Measurement("Reconstruction", variant, rfid.column, rfid.value, "", "lower", how))
    pictures = {name: torch.cat([strip[name] for strip in all_strips])[:shown] for name in ("input", *VARIANTS)}
    return ReconstructionReport(measurements, pictures)


def _values(metrics: Sequence[PairedMetric], images: Tensor, originals: Tensor) -> Tensor:
    """[metrics, B], float64."""
    images = images.cpu()
    return torch.stack([metric.measure(images, originals).double() for metric in metrics])


def _in_order(parts: Iterable[tuple[int, T]]) -> list[T]:
    """What belongs to each batch, by its first image."""
    return [part for _, part in sorted(parts, key=lambda item: item[0])]
