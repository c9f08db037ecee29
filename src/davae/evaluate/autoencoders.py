"""Autoencoders side by side on one set of images: what their latents keep of an image, and in how many numbers.

A plain autoencoder has three rows: at full resolution, and twice at half the resolution and enlarged, which takes as
many latent positions as its upgrade by 2.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.evaluate.metrics import psnr, ssim
from davae.evaluate.results import Measurement
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.models.faces import compression_of, layout_of, weights_hash
from davae.models.perceptual import LPIPS
from davae.train.journal import Observer

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
    protocol: Mapping[str, Any]


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
    return math.lcm(2, *(compression_of(one) * (1 if isinstance(one, AutoencoderDA) else 2) for one in autoencoders))


@torch.inference_mode()
def measure_autoencoders(
    autoencoders: Mapping[str, Any],
    images: TestImages,
    perceptual: LPIPS | None,
    device: torch.device,
    observer: Observer,
) -> Iterator[Row]:
    """The rows of the table, in reading order; one image and one autoencoder are on the device at a time.

    Args:
        autoencoders: name -> plain or structured autoencoder, fp32, in eval mode.
        images: at least one; sides are multiples of `multiple_of(autoencoders)`, and `SMALLEST_SIDE` or more.
        perceptual: distance network; None leaves the LPIPS column out.
        device: where to compute.
        observer: who watches.
    """
    if perceptual is not None:
        perceptual = perceptual.to(device)
    for name, autoencoder in autoencoders.items():
        about = {"class": type(autoencoder).__name__, "weights": weights_hash(autoencoder)}
        autoencoder.to(device)
        yield from _measure(name, _ways_of(name, autoencoder), about, images, perceptual, device, observer)
        autoencoder.to("cpu")
    yield from _measure(BICUBIC, _ways_without(), {}, images, perceptual, device, observer)


def _ways_of(name: str, autoencoder: Any) -> list[_Way]:
    compression, channels = compression_of(autoencoder), layout_of(autoencoder).channels

    def way(name: str, how: str, rebuild: Callable[[Tensor], Tensor], compression: int) -> _Way:
        return _Way(name, how, rebuild, compression, channels, channels / compression**2)

    def through(image: Tensor) -> Tensor:
        if isinstance(autoencoder, AutoencoderDA):
            return autoencoder.decode(autoencoder.encode(image).latent_dist.mode()).sample
        family = family_of(type(autoencoder).__name__)
        return family.decode(autoencoder, family.encode(autoencoder, image))

    ways = [way(name, "encoded (posterior mode) and decoded at full resolution", through, compression)]
    if isinstance(autoencoder, AutoencoderDA):
        return ways
    for label, (how, halve) in _HALVINGS.items():
        ways.append(
            way(
                f"{name}, {label}",
                f"{how}, encoded (posterior mode) and decoded there, then bicubic up",
                lambda image, halve=halve: _double(through(halve(image))),
                2 * compression,
            )
        )
    return ways


def _ways_without() -> list[_Way]:
    return [
        _Way(
            f"{BICUBIC}, {label}",
            f"{how}, then bicubic up; no autoencoder",
            lambda image, halve=halve: _double(halve(image)),
            values=3 / 4,
        )
        for label, (how, halve) in _HALVINGS.items()
    ]


def _half(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False)


def _half_antialiased(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=0.5, mode="bicubic", align_corners=False, antialias=True).clamp(-1, 1)


def _double(image: Tensor) -> Tensor:
    return F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)


# The first is `AutoencoderDA.base_image`; people who shrink an image for itself do the second.
_HALVINGS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "half resolution": ("bicubic x 1/2 without antialiasing or clamp (the base image of an upgrade by 2)", _half),
    "half resolution, antialiased": ("bicubic x 1/2 with antialiasing, clamped to its range", _half_antialiased),
}


def _measure(
    name: str,
    ways: Sequence[_Way],
    about: Mapping[str, Any],
    images: TestImages,
    perceptual: LPIPS | None,
    device: torch.device,
    observer: Observer,
) -> Iterator[Row]:
    """A row for each way, over one pass of the images."""
    scores: list[list[tuple[float, ...]]] = [[] for _ in ways]
    crops: list[list[Crop]] = [[] for _ in ways]
    sizes: list[tuple[int, int]] = []
    observer.begin(f"evaluate: {name}", len(images.ids))
    for index, image_id in enumerate(images.ids):
        target = images.load(index).to(device)[None].float() / 255
        sizes.append((target.shape[2], target.shape[3]))
        for way, values, extremes in zip(ways, scores, crops, strict=True):
            rebuilt = ((way.rebuild(target * 2 - 1).float() + 1) / 2).clamp(0, 1)
            values.append(_scores(rebuilt, target, perceptual))
            crop = _crop(image_id, values[-1][0], target, rebuilt)
            ranked = sorted([*extremes, crop], key=lambda one: one.psnr)
            extremes[:] = [ranked[0], ranked[-1]]
        observer.advance(index + 1)
    observer.end()
    for way, values, extremes in zip(ways, scores, crops, strict=True):
        means = torch.tensor(values, dtype=torch.float64).mean(dim=0).tolist()
        yield Row(way.name, _measurements(way, means, about, images, sizes[0]), extremes[0], extremes[-1])


def _scores(rebuilt: Tensor, target: Tensor, perceptual: LPIPS | None) -> tuple[float, ...]:
    scores = (psnr(rebuilt, target).clamp(max=_EXACT).item(), ssim(rebuilt, target).item())
    if perceptual is None:
        return scores
    return (*scores, perceptual(rebuilt * 2 - 1, target * 2 - 1).item())


def _measurements(
    way: _Way, means: Sequence[float], about: Mapping[str, Any], images: TestImages, first_size: tuple[int, int]
) -> list[Measurement]:
    protocol = {
        **images.protocol,
        **about,
        "images": len(images.ids),
        "precision": "float32",
        "psnr": f"mean over images of each image's dB, float images clamped to [0, 1], no 8-bit rounding, at most "
        f"{_EXACT:.0f} dB an image",
        "ssim": "gaussian 11, sigma 1.5, valid convolution, mean over channels",
        "row": way.how,
    }
    if len(means) == 3:
        protocol["lpips"] = "v0.1, VGG16, on the clamped images"
    measurements = [
        Measurement(GROUP, way.name, "PSNR", means[0], "dB", "higher", protocol),
        Measurement(GROUP, way.name, "SSIM", means[1], "", "higher", protocol),
    ]
    if len(means) == 3:
        measurements.append(Measurement(GROUP, way.name, "LPIPS", means[2], "", "lower", protocol))
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
        square = image[0, :, top : top + side, left : left + side]
        return (square * 255).round().to(torch.uint8).cpu()

    return Crop(image_id, decibels, cut(target), cut(rebuilt))
