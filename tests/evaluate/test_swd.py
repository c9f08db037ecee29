"""Sliced Wasserstein distance: a direct numpy computation, and that it sees what it is meant to see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from davae.evaluate.swd import SlicedWasserstein, laplacian_pyramid, sliced_wasserstein


def _images(count: int, seed: int, size: int = 64) -> Tensor:
    """Smooth shapes and fine texture, uint8."""
    draw = torch.Generator().manual_seed(seed)
    shapes = F.interpolate(torch.rand(count, 3, 6, 6, generator=draw), size=size, mode="bicubic")
    texture = 0.15 * torch.randn(count, 3, size, size, generator=draw).sign()
    return ((shapes + texture).clamp(0, 1) * 255).round().to(torch.uint8)


def _blur(images: Tensor) -> Tensor:
    return F.avg_pool2d(images.float(), 3, 1, 1, count_include_pad=False).round().to(torch.uint8)


def _filter(image: np.ndarray, gain: float = 1.0) -> np.ndarray:
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256 * gain
    padded = np.pad(image, 2, mode="reflect")
    out = np.zeros_like(image)
    for dy in range(5):
        for dx in range(5):
            out += kernel[dy, dx] * padded[dy : dy + image.shape[0], dx : dx + image.shape[1]]
    return out


def _numpy_bands(image: np.ndarray, levels: int) -> list[np.ndarray]:
    bands = [image]
    for _ in range(levels - 1):
        coarse = _filter(bands[-1])[::2, ::2]
        spread = np.zeros_like(bands[-1])
        spread[::2, ::2] = coarse
        bands[-1] = bands[-1] - _filter(spread, 4.0)
        bands.append(coarse)
    return bands


def _numpy_distance(measure: SlicedWasserstein, sets: list[Tensor], own: bool) -> dict[int, float]:
    found = {}
    for rank, level in enumerate(measure.levels):
        patches = []
        for images in sets:
            rows = []
            for number, image in enumerate(images.double().numpy()):
                bands = np.stack([_numpy_bands(channel, len(measure.levels))[rank] for channel in image])
                for y, x in measure.positions(number, level).tolist():
                    rows.append(bands[:, y : y + 7, x : x + 7])
            patches.append(np.stack(rows))
        reference = patches[1]
        flat = []
        for rows in patches:
            source = rows if own else reference
            rows = rows - source.mean(axis=(0, 2, 3), keepdims=True)
            flat.append((rows / source.std(axis=(0, 2, 3), keepdims=True)).reshape(len(rows), -1))
        repeats = []
        for repeat in range(4):
            directions = measure.directions(level, repeat).double().numpy()
            a, b = (np.sort(rows @ directions, axis=0) for rows in flat)
            # Repeating up to a common length is the definition for sets of different size.
            a, b = np.repeat(a, len(b), axis=0), np.repeat(b, len(a), axis=0)
            repeats.append(np.abs(a - b).mean())
        found[level] = float(np.mean(repeats)) * 1e3
    return found


@pytest.mark.parametrize("normalize", ["own", "reference"])
@pytest.mark.parametrize("count", [3, 2])
def test_matches_a_direct_computation(normalize: str, count: int) -> None:
    images, reference = _images(count, 1, 32), _images(3, 2, 32)
    measure = SlicedWasserstein(32, descriptors_per_image=10, normalize=normalize, seed=7)
    described = measure.describe(images, range(count)), measure.describe(reference, range(3))
    want = _numpy_distance(measure, [images, reference], own=normalize == "own")
    assert measure.distance(*described) == pytest.approx(want, rel=1e-4)


def test_pyramid_adds_up_to_the_image() -> None:
    image = torch.rand(1, 3, 64, 64)
    bands = laplacian_pyramid(image, 3)
    assert [band.shape[-1] for band in bands] == [64, 32, 16]
    for rank, channel in enumerate(_numpy_bands(image[0, 0].double().numpy(), 3)):
        np.testing.assert_allclose(bands[rank][0, 0].numpy(), channel, atol=1e-6)


def test_equal_sets_are_at_distance_zero() -> None:
    images = _images(6, 0)
    assert sliced_wasserstein(images, images.clone()) == {64: 0.0, 32: 0.0, 16: 0.0}


@pytest.mark.parametrize("normalize", ["own", "reference"])
def test_a_blur_is_seen_at_the_finest_level_first(normalize: str) -> None:
    images = _images(12, 0)
    found = sliced_wasserstein(_blur(images), images, normalize=normalize)
    assert found[64] > 3 * found[16]
    assert found[64] > 30


def test_noise_is_seen_and_more_noise_is_worse() -> None:
    images = _images(12, 0)
    draw = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    noisy = [(images + sigma * draw).clamp(0, 255).round().to(torch.uint8) for sigma in (12, 40)]
    little, much = (sliced_wasserstein(images_, images, normalize="reference") for images_ in noisy)
    assert 0 < little[64] < much[64]


def test_reference_statistics_count_missing_energy() -> None:
    images = _images(12, 0)
    faint = (images.float() * 0.3 + 90).round().to(torch.uint8)  # the same patterns with less contrast
    own = sliced_wasserstein(faint, images, normalize="own")
    reference = sliced_wasserstein(faint, images, normalize="reference")
    assert reference[64] > 5 * own[64]


def test_grouping_into_batches_changes_nothing() -> None:
    images = _images(5, 0)
    measure = SlicedWasserstein(64, descriptors_per_image=16)
    whole = measure.describe(images, list("abcde"))
    parts = measure.describe(iter([images[:1], images[1:4], images[4:]]), list("abcde"))
    for level in measure.levels:
        torch.testing.assert_close(parts.levels[level], whole.levels[level], rtol=0, atol=1e-4)


def test_the_number_belongs_to_the_seed() -> None:
    images, reference = _images(4, 0), _images(4, 1)
    first = sliced_wasserstein(images, reference, seed=0)
    torch.rand(3)
    assert first == sliced_wasserstein(images, reference, seed=0)
    assert first != sliced_wasserstein(images, reference, seed=1)


def test_refusals_name_what_is_wrong() -> None:
    measure = SlicedWasserstein(32)
    with pytest.raises(ValueError, match="float32"):
        measure.describe(torch.rand(1, 3, 32, 32), [0])
    with pytest.raises(ValueError, match="2 ids for 1 images"):
        measure.describe(_images(1, 0, 32), [0, 1])
    with pytest.raises(ValueError, match="no variation"):
        sliced_wasserstein(torch.full((2, 3, 32, 32), 128, dtype=torch.uint8), _images(2, 0, 32))
    with pytest.raises(ValueError, match="16 px"):
        SlicedWasserstein(8)
