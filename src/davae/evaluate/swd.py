"""Owner of the sliced Wasserstein distance per Laplacian pyramid level, ProGAN's multi-scale statistic.

Karras et al. 2018, section 5: small patches of each pyramid level, projected on random directions; no
network is involved, so the number is the same on every machine. A level names the scale it looks at: the
finest one sees texture, the coarsest (16 px) sees layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from davae.core.randomness import Key, generator
from davae.evaluate.metric import Scores, SetMetric

Normalize = Literal["own", "reference"]

_PATCH = 7  # px
_COARSEST = 16  # px
_REPEATS = 4
_DIRECTIONS = 128  # a repeat
_REPORT_SCALE = 1e3
# Grey levels of 255. Float rounding of a flat image stays below; any real texture lies far above.
_FLAT = 1e-3


@dataclass(frozen=True)
class Descriptors:
    """Patches of a set of images.

    Args:
        levels: level side in px -> float32 [images * patches, 3, 7, 7] in grey levels of 255.
    """

    levels: dict[int, Tensor]


class SlicedWasserstein:
    """Describes sets of images by random patches per pyramid level, and measures how far two sets are apart.

    Args:
        resolution: side of the square images in px. Levels halve it down to 16 px (or the last even side).
        descriptors_per_image: patches per image and level; ProGAN takes 128.
        normalize: "own" brings each set to zero mean and unit deviation per channel by its own statistics,
            as ProGAN does; it sees the shape of the patch distribution but not its energy. "reference"
            uses the reference set's statistics for both (ours), so that missing texture energy counts.
        seed: patch positions are a function of (seed, image id), directions of (seed, level, repeat).

    A set takes 75 kB per image and level at 128 patches.
    """

    def __init__(
        self,
        resolution: int,
        descriptors_per_image: int = 128,
        normalize: Normalize = "own",
        seed: int = 0,
    ) -> None:
        if resolution < _COARSEST:
            raise ValueError(f"Sliced Wasserstein distance needs images of at least 16 px; got {resolution} px.")
        if descriptors_per_image < 1:
            raise ValueError(f"descriptors_per_image must be at least 1; got {descriptors_per_image}.")
        if normalize not in ("own", "reference"):
            raise ValueError(f"Unknown normalize; got {normalize!r}, allowed 'own' and 'reference'.")
        self.resolution = resolution
        self.descriptors_per_image = descriptors_per_image
        self.normalize = normalize
        self.seed = seed
        self.levels = [resolution]
        while self.levels[-1] % 2 == 0 and self.levels[-1] // 2 >= _COARSEST:
            self.levels.append(self.levels[-1] // 2)

    def describe(self, images: Tensor | Iterable[Tensor], ids: Sequence[Key]) -> Descriptors:
        """Patches of a set of images; how the images are grouped into batches does not matter.

        Args:
            images: uint8 [N, 3, H, W], or batches of it.
            ids: one id per image, in order over all batches; it decides where the patches lie.
        """
        batches = [images] if isinstance(images, Tensor) else images
        patches: dict[int, list[Tensor]] = {level: [] for level in self.levels}
        seen = 0
        for batch in batches:
            self._expect(batch)
            names = ids[seen : seen + len(batch)]
            seen += len(batch)
            if len(names) < len(batch):
                raise ValueError(f"Every image needs an id; got {len(ids)} ids for at least {seen} images.")
            pyramid = laplacian_pyramid(batch.float(), len(self.levels))
            for level, band in zip(self.levels, pyramid, strict=True):
                patches[level].append(self._patches(band, level, names))
        if seen == 0 or seen != len(ids):
            raise ValueError(f"Every image needs an id, and a set an image; got {len(ids)} ids for {seen} images.")
        return Descriptors({level: torch.cat(parts) for level, parts in patches.items()})

    def distance(self, images: Descriptors, reference: Descriptors) -> dict[int, float]:
        """Level side in px -> mean |difference| of sorted projections x 1e3, 0 for equal sets."""
        return {level: self._level_distance(images, reference, level) for level in self.levels}

    def positions(self, image_id: Key, level: int) -> Tensor:
        """Top left corners of an image's patches at a level, int64 [patches, 2] as (y, x)."""
        draw = generator(self.seed, "swd-positions", level, image_id)
        return torch.randint(level - _PATCH + 1, (self.descriptors_per_image, 2), generator=draw)

    def directions(self, level: int, repeat: int) -> Tensor:
        """Unit directions of a repeat, float32 [147, 128]."""
        draw = generator(self.seed, "swd-directions", level, repeat)
        return F.normalize(torch.randn(3 * _PATCH**2, _DIRECTIONS, generator=draw), dim=0)

    def _patches(self, band: Tensor, level: int, ids: Sequence[Key]) -> Tensor:
        corners = torch.stack([self.positions(name, level) for name in ids]).to(band.device)
        windows = band.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)  # a view, [N, 3, H - 6, W - 6, 7, 7]
        image = torch.arange(len(band), device=band.device)[:, None]
        return windows[image, :, corners[..., 0], corners[..., 1]].flatten(0, 1)

    def _level_distance(self, images: Descriptors, reference: Descriptors, level: int) -> float:
        a, b = images.levels[level], reference.levels[level]
        statistics = _statistics(b, level)
        b = _standardize(b, *statistics)
        a = _standardize(a, *(statistics if self.normalize == "reference" else _statistics(a, level)))
        index_a, index_b, weights = _quantile_cells(len(a), len(b))
        index_a, index_b, weights = index_a.to(a.device), index_b.to(a.device), weights.to(a)
        total = 0.0
        for repeat in range(_REPEATS):
            directions = self.directions(level, repeat).to(a)
            sorted_a = _sorted(directions.T @ a.T)  # [128, n]: sorting runs along memory
            sorted_b = _sorted(directions.T @ b.T)
            gaps = sorted_a[:, index_a].sub_(sorted_b[:, index_b]).abs_()
            total += float((gaps @ weights).mean())
        return total / _REPEATS * _REPORT_SCALE

    def _expect(self, batch: Tensor) -> None:
        if batch.dtype != torch.uint8 or batch.shape[1:] != (3, self.resolution, self.resolution):
            raise ValueError(
                f"Sliced Wasserstein distance at {self.resolution} px takes uint8 images "
                f"[N, 3, {self.resolution}, {self.resolution}]; got {batch.dtype} {tuple(batch.shape)}. "
                f"Resize the images, or set resolution."
            )


def sliced_wasserstein(
    images: Tensor,
    reference: Tensor,
    *,
    descriptors_per_image: int = 128,
    normalize: Normalize = "own",
    seed: int = 0,
    batch_size: int = 64,
) -> dict[int, float]:
    """Distance of two sets of uint8 images [N, 3, H, H] and [M, 3, H, H]: level side in px -> distance x 1e3."""
    measure = SlicedWasserstein(images.shape[-1], descriptors_per_image, normalize, seed)
    described = measure.describe(images.split(batch_size), range(len(images)))
    return measure.distance(described, measure.describe(reference.split(batch_size), range(len(reference))))


def _scores(sets: Mapping[str, Tensor], real: Tensor, seed: int) -> Scores:
    statistic = SlicedWasserstein(real.shape[-1], seed=seed)
    reference = statistic.describe(real, [f"real-{index}" for index in range(len(real))])
    scores: Scores = {}
    for name, images in sets.items():
        described = statistic.describe(images, [f"generated-{index}" for index in range(len(images))])
        distances = statistic.distance(described, reference)
        scores[name] = {f"{level} px level": value for level, value in distances.items()}
    return scores


SWD = SetMetric(
    "Generation: sliced Wasserstein distance to real images",
    _scores,
    f"ProGAN: {_PATCH}x{_PATCH} patches, 128 an image, each set normalised by itself, "
    f"{_REPEATS} x {_DIRECTIONS} projections",
    "lower",
    "x 1e-3",
)


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """Band-pass images, finest first, and the low-pass rest: [N, C, H, W] -> halving [N, C, H / 2^i, W / 2^i].

    The 5x5 binomial kernel with mirrored borders, as in ProGAN; the sum of the upsampled levels is the image.
    """
    bands = [images]
    for _ in range(levels - 1):
        coarse = _binomial(bands[-1])[..., ::2, ::2]
        bands[-1] = bands[-1] - _upsample(coarse)
        bands.append(coarse)
    return bands


def _upsample(images: Tensor) -> Tensor:
    n, c, h, w = images.shape
    spread = images.new_zeros(n, c, 2 * h, 2 * w)
    spread[..., ::2, ::2] = images
    return 4 * _binomial(spread)  # a quarter of the pixels is set


def _binomial(images: Tensor) -> Tensor:
    weights = images.new_tensor([1, 4, 6, 4, 1]) / 16
    n, c, h, w = images.shape
    padded = F.pad(images, (2, 2, 2, 2), mode="reflect").reshape(n * c, 1, h + 4, w + 4)
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 5, 1)), weights.view(1, 1, 1, 5)).view(n, c, h, w)


def _statistics(patches: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each colour channel over all patches, float64 [3] each."""
    values = patches.movedim(1, 0).flatten(1)
    mean = values.mean(dim=1, dtype=torch.float64)
    # One channel at a time: a float64 copy of the whole set would triple its memory.
    deviation = torch.stack([(row.double() - m).square().mean().sqrt() for row, m in zip(values, mean, strict=True)])
    if bool((deviation < _FLAT).any()):
        raise ValueError(
            f"Sliced Wasserstein distance is undefined: a set has no variation at level {level} px "
            f"(deviation of the channels {[round(d, 6) for d in deviation.tolist()]} of 255). "
            f"Use normalize='reference' if it is the measured set that is flat."
        )
    return mean, deviation


def _standardize(patches: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Patches [n, 3, 7, 7] -> descriptors [n, 147]."""
    scale = deviation.to(patches).view(3, 1, 1)
    return (patches - mean.to(patches).view(3, 1, 1)).div_(scale).flatten(1)


def _sorted(rows: Tensor) -> Tensor:
    """Each row in ascending order; may sort in place."""
    if rows.device.type == "cpu":
        rows.numpy().sort(axis=1)  # numpy's vectorised sort is 14 times faster than torch's, which also indexes
        return rows
    return rows.sort(dim=1).values


def _quantile_cells(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells on which the quantile functions of n and of m sorted values are both constant.

    Sorted value i of n is the quantile function on [i / n, (i + 1) / n). Cutting [0, 1) at the edges of
    both makes the distance exact for sets of different size, the same as repeating every value up to the
    least common multiple; for n = m it is ProGAN's mean of |sorted difference|.

    Returns:
        Index into the n values, index into the m values, width of the cell (float64, sum 1), each [cells].
    """
    edges = torch.cat([torch.arange(n) * m, torch.arange(m + 1) * n]).unique()  # in units of 1 / (n m)
    starts, widths = edges[:-1], edges.diff()
    return starts // m, starts // n, widths.double() / (n * m)
