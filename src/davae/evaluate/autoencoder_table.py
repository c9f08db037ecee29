"""Autoencoders side by side on one set of images: what their latents keep of an image, and in how many numbers.

A plain autoencoder has three rows: at full resolution, and twice at half the resolution and enlarged, which takes as
many latent positions as its upgrade by 2.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.observer import Observer
from davae.core.pixels import enlarge, signed_to_unit, uint8_to_unit, unit_to_signed, unit_to_uint8
from davae.evaluate import lpips
from davae.evaluate.metric import PairedMetric, Score
from davae.evaluate.metrics import PAIRED
from davae.evaluate.reconstruction_fid import ReconstructionFID
from davae.evaluate.results import Measurement
from davae.evaluate.similarity import PSNR
from davae.models.adapter import AutoencoderAdapter, PlainAdapter, adapt
from davae.models.identity import weights_hash
from davae.models.perceptual import LPIPS

GROUP = "Autoencoders"
BICUBIC = "bicubic"
SMALLEST_SIDE = 16
"""Pixels; LPIPS halves an image four times."""
_EXACT = 100.0  # dB; an image without any error would have infinitely many
_CROP = 128  # px
_POSITIONS_AT = 1024  # px a side


@dataclass(frozen=True)
class TestImages:
    """Images of whatever sizes, one at a time.

    Args:
        ids: a name each.
        load: index -> uint8 [3, H, W].
        protocol: how they came about.
    """

    __test__ = False  # pytest: not a test class

    ids: Sequence[str]
    load: Callable[[int], Tensor]
    protocol: Mapping[str, object]


@dataclass(frozen=True)
class Crop:
    """A square of an image, where the error is largest: uint8 [3, S, S] as it is and as it was rebuilt."""

    id: str
    psnr: float
    original: Tensor
    rebuilt: Tensor


@dataclass
class Row:
    """A line of the table, and its images with the least and the largest PSNR."""

    name: str
    measurements: list[Measurement]
    worst: Crop
    best: Crop


@dataclass(frozen=True)
class _Way:
    """One way to keep an image: [1, 3, H, W] in [-1, 1] -> the same, not clamped."""

    name: str
    how: str
    rebuild: Callable[[Tensor], Tensor]
    compression: int | None = None
    channels: int | None = None
    values: float = 0.0  # a pixel


def multiple_of(autoencoders: Sequence[Any]) -> int:
    """Pixels that the sides of an image have to be a multiple of, for every row of these autoencoders."""
    adapters = [adapt(autoencoder) for autoencoder in autoencoders]
    return math.lcm(2, *(a.compression * (2 if isinstance(a, PlainAdapter) else 1) for a in adapters))


@torch.inference_mode()
def measure_autoencoders(
    autoencoders: Mapping[str, Any],
    images: TestImages,
    perceptual: LPIPS | None,
    device: torch.device,
    observer: Observer,
    fid: ReconstructionFID | None = None,
) -> Iterator[Row]:
    """The rows of the table, in reading order; one image and one autoencoder are on the device at a time.

    Args:
        autoencoders: name -> plain or structured autoencoder, fp32, in eval mode.
        images: at least one; sides are multiples of `multiple_of(autoencoders)`, and `SMALLEST_SIDE` or more.
        perceptual: distance network; None leaves the LPIPS column out.
        device: where to compute.
        observer: who watches.
        fid: None leaves the rFID column out.
    """
    metrics = _metrics(None if perceptual is None else perceptual.to(device))
    for name, autoencoder in autoencoders.items():
        about = {"class": type(autoencoder).__name__, "weights": weights_hash(autoencoder)}
        autoencoder.to(device)
        yield from _measure(name, _ways_of(name, adapt(autoencoder)), about, images, metrics, device, observer, fid)
        autoencoder.to("cpu")
    yield from _measure(BICUBIC, _ways_without(), {}, images, metrics, device, observer, fid)


def _metrics(perceptual: LPIPS | None) -> list[PairedMetric]:
    """PSNR first, by which the worst and the best image are chosen."""

    def decibels(images: Tensor, originals: Tensor) -> Tensor:
        return PSNR.measure(images, originals).clamp(max=_EXACT)

    bounded = replace(PSNR, measure=decibels, protocol=f"{PSNR.protocol}, at most {_EXACT:.0f} dB an image")
    metrics = [bounded, *(metric for metric in PAIRED if metric is not PSNR)]
    return metrics if perceptual is None else [*metrics, lpips.column(perceptual)]


def _ways_of(name: str, adapter: AutoencoderAdapter) -> list[_Way]:
    channels = adapter.layout.channels

    def way(name: str, how: str, rebuild: Callable[[Tensor], Tensor], compression: int) -> _Way:
        return _Way(name, how, rebuild, compression, channels, channels / compression**2)

    through = _through(adapter)
    ways = [way(name, "encoded (posterior mode) and decoded at full resolution", through, adapter.compression)]
    if not isinstance(adapter, PlainAdapter):
        return ways
    for label, (how, halve) in _HALVINGS.items():
        how = f"{how}, encoded (posterior mode) and decoded there, then bicubic up"
        ways.append(way(f"{name}, {label}", how, _at_half(halve, through), 2 * adapter.compression))
    return ways


def _through(adapter: AutoencoderAdapter) -> Callable[[Tensor], Tensor]:
    """[1, 3, H, W] in [-1, 1] -> the same, encoded and decoded; no scaling comes between."""
    model = adapter.model
    if isinstance(adapter, PlainAdapter):
        family = adapter.family
        return lambda image: family.decode(model, family.encode(model, image))
    return lambda image: model.decode(model.encode(image).latent_dist.mode()).sample


def _ways_without() -> list[_Way]:
    return [
        _Way(
            f"{BICUBIC}, {label}",
            f"{how}, then bicubic up; no autoencoder",
            _at_half(halve, lambda image: image),
            values=3 / 4,
        )
        for label, (how, halve) in _HALVINGS.items()
    ]


def _at_half(halve: Callable[[Tensor], Tensor], through: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def rebuild(image: Tensor) -> Tensor:
        return enlarge(through(halve(image)), (image.shape[2], image.shape[3]))

    return rebuild


def _half(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False)


def _half_antialiased(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


# The first is `AutoencoderDA.base_image`; people who shrink an image for itself do the second.
_HALVINGS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "half resolution": ("bicubic x 1/2 without antialiasing or clamp (the base image of an upgrade by 2)", _half),
    "half resolution, antialiased": ("bicubic x 1/2 with antialiasing, clamped to its range", _half_antialiased),
}


def _measure(
    name: str,
    ways: Sequence[_Way],
    about: Mapping[str, object],
    images: TestImages,
    metrics: Sequence[PairedMetric],
    device: torch.device,
    observer: Observer,
    fid: ReconstructionFID | None,
) -> Iterator[Row]:
    """A row for each way, over one pass of the images."""
    scores: list[list[list[float]]] = [[] for _ in ways]
    crops: list[list[Crop]] = [[] for _ in ways]
    sizes: list[tuple[int, int]] = []
    observer.begin(f"evaluate: {name}", len(images.ids))
    for index, image_id in enumerate(images.ids):
        target = uint8_to_unit(images.load(index).to(device)[None])
        sizes.append((target.shape[2], target.shape[3]))
        if fid is not None:
            fid.originals(target, index)
        for way, values, extremes in zip(ways, scores, crops, strict=True):
            rebuilt = signed_to_unit(way.rebuild(unit_to_signed(target)))
            if fid is not None:
                fid.rebuilt(way.name, rebuilt)
            values.append([metric.measure(rebuilt, target).item() for metric in metrics])
            crop = _crop(image_id, values[-1][0], target, rebuilt)
            ranked = sorted([*extremes, crop], key=lambda crop: crop.psnr)
            extremes[:] = [ranked[0], ranked[-1]]
        observer.advance(index + 1)
    observer.end()
    distances = {} if fid is None else fid.scores([way.name for way in ways])
    for way, values, extremes in zip(ways, scores, crops, strict=True):
        means = torch.tensor(values, dtype=torch.float64).mean(dim=0).tolist()
        columns, rfid = list(zip(metrics, means, strict=True)), distances.get(way.name)
        yield Row(way.name, _measurements(way, columns, about, images, sizes[0], rfid), extremes[0], extremes[-1])


def _measurements(
    way: _Way,
    columns: Sequence[tuple[PairedMetric, float]],
    about: Mapping[str, object],
    images: TestImages,
    first_size: tuple[int, int],
    rfid: Score | None,
) -> list[Measurement]:
    protocol = {
        **images.protocol,
        **about,
        "images": len(images.ids),
        "precision": "float32",
        **{metric.key: metric.protocol for metric, _ in columns},
        "row": way.how,
    }
    measurements = [
        Measurement(GROUP, way.name, metric.name, mean, metric.unit, metric.better, protocol)
        for metric, mean in columns
    ]
    if rfid is not None:
        how = {**protocol, **rfid.details}
        measurements.append(Measurement(GROUP, way.name, rfid.column, rfid.value, "", "lower", how))
    if way.compression is not None and way.channels is not None:
        height, width = (side // way.compression for side in first_size)
        protocol["latent"] = f"{height} x {width} positions for the first image, {first_size[0]} x {first_size[1]} px"
        positions = (_POSITIONS_AT / way.compression) ** 2
        measurements += [
            Measurement(GROUP, way.name, f"positions at {_POSITIONS_AT} px", positions, protocol=protocol),
            Measurement(GROUP, way.name, "channels", way.channels, protocol=protocol),
        ]
    measurements.append(Measurement(GROUP, way.name, "values a pixel", way.values, protocol=protocol))
    return measurements


def _crop(image_id: str, decibels: float, target: Tensor, rebuilt: Tensor) -> Crop:
    error = (rebuilt - target).square().mean(dim=1, keepdim=True)
    side = min(_CROP, *error.shape[2:])
    stride = max(1, side // 8)
    windows = F.avg_pool2d(error, side, stride)[0, 0]
    top, left = (int(index) * stride for index in divmod(int(windows.argmax()), windows.shape[1]))

    def cut(image: Tensor) -> Tensor:
        return unit_to_uint8(image[0, :, top : top + side, left : left + side])

    return Crop(image_id, decibels, cut(target), cut(rebuilt))
