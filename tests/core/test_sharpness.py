"""Distances of fine structure in closed form: bands of a pyramid, lines of a spectrum."""

import math

import pytest
import torch
from torch import Tensor

from davae.core.sharpness import laplacian_pyramid, pyramid_distance, spectral_distance

ZERO = torch.zeros(1, 1, 16, 32)


def wave(amplitude: float, cycles: int) -> Tensor:
    """A cosine along the rows, [1, 1, 16, 32]."""
    row = amplitude * torch.cos(2 * math.pi * cycles * torch.arange(32) / 32)
    return row.expand(1, 1, 16, 32)


def outer(*values: float, start: int, size: int) -> Tensor:
    """The square [1, 1, size, size] of a row that has these values from `start` on."""
    row = torch.zeros(size)
    row[start : start + len(values)] = torch.tensor(values)
    return (row[:, None] * row)[None, None]


def test_the_finest_band_of_a_bright_point_is_what_blurring_takes_from_it() -> None:
    point = outer(8.0, start=8, size=16)
    band, coarser = laplacian_pyramid(point, 2)
    # Reduced it is (1, 3) from position 3 on; enlarged, a position has 3/4 of its own value and 1/4 of a neighbour's.
    blurred = outer(0.25, 0.75, 1.5, 2.5, 2.25, 0.75, start=5, size=16)
    torch.testing.assert_close(band, point - blurred)
    assert coarser.shape == (1, 1, 8, 8)


def test_bands_and_what_is_left_make_the_image() -> None:
    image = torch.randn(2, 3, 16, 24)
    bands = laplacian_pyramid(image, 3)
    assert [tuple(band.shape[2:]) for band in bands] == [(16, 24), (8, 12), (4, 6)]
    rest = image
    for _ in bands:
        rest = torch.nn.functional.interpolate(rest, scale_factor=0.5, mode="bilinear", antialias=True)
    for band in reversed(bands):
        rest = band + torch.nn.functional.interpolate(rest, band.shape[2:], mode="bilinear")
    torch.testing.assert_close(rest, image)


def test_bands_do_not_see_brightness_and_the_finest_sees_a_chequerboard_whole() -> None:
    assert pyramid_distance(ZERO + 0.5, ZERO, 3) == pytest.approx(0, abs=1e-7)
    board = torch.ones(1, 1, 32, 32)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1
    inner = laplacian_pyramid(board, 1)[0][..., 3:-3, 3:-3]  # 1 - 3 + 3 - 1 is 0; at the rim it is cut off
    torch.testing.assert_close(inner, board[..., 3:-3, 3:-3])


def test_every_band_of_the_pyramid_counts_by_its_mean() -> None:
    image, reference = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32)
    ours, theirs = laplacian_pyramid(image, 3), laplacian_pyramid(reference, 3)
    summed = [(a - b).abs().sum() for a, b in zip(ours, theirs, strict=True)]
    want = sum(4**level * value for level, value in enumerate(summed)) / image.numel()  # as GLO has it
    torch.testing.assert_close(pyramid_distance(image, reference, 3), want)


def test_sides_need_not_be_powers_of_two_but_must_last_for_the_levels() -> None:
    assert [tuple(band.shape[2:]) for band in laplacian_pyramid(torch.randn(1, 1, 14, 9), 3)] == [
        (14, 9),
        (7, 4),
        (3, 2),
    ]
    with pytest.raises(ValueError, match=r"3 levels needs sides of 8 px and more; got 9 x 7\. Take fewer levels"):
        laplacian_pyramid(torch.randn(1, 1, 7, 9), 3)


@pytest.mark.parametrize(("cycles", "lines"), [(0, 1), (3, 2), (16, 1)])  # 3 and -3; 16 is its own mirror image
@pytest.mark.parametrize("focus", [0.0, 1.0, 2.0])
def test_a_wave_has_the_distance_of_its_lines(cycles: int, lines: int, focus: float) -> None:
    height_of_a_line = 0.3 / lines * math.sqrt(16 * 32)
    want = lines * height_of_a_line / (16 * 32)
    assert float(spectral_distance(wave(0.3, cycles), ZERO, focus)) == pytest.approx(want, rel=1e-4)


def test_focus_weighs_a_line_by_its_share_of_the_largest() -> None:
    both, root = wave(0.4, 2) + wave(0.1, 9), math.sqrt(16 * 32)
    for focus, weight in ((0.0, 1.0), (1.0, 0.25), (2.0, 0.0625)):
        found = float(spectral_distance(ZERO, both, focus))
        assert found == pytest.approx((0.4 + weight * 0.1) / root, rel=1e-3)


def test_focus_is_of_each_images_channel_and_gives_no_gradient_of_its_own() -> None:
    small, large = wave(0.1, 5), wave(10.0, 2)
    both = torch.cat([small, large])
    apart = (spectral_distance(small, ZERO) + spectral_distance(large, ZERO)) / 2
    torch.testing.assert_close(spectral_distance(both, torch.zeros_like(both)), apart)
    image = (wave(0.4, 2) + wave(0.1, 9)).clone().requires_grad_()
    spectral_distance(image, ZERO).backward()
    lines = torch.fft.rfft2(image.grad, norm="ortho").abs()[0, 0, 0] * 16 * 32
    assert lines[[2, 9]].tolist() == pytest.approx([1.0, 0.25], rel=1e-3)


def test_white_noise_is_about_as_far_as_by_l1() -> None:
    noise = torch.randn(4, 3, 64, 64)
    far = float(spectral_distance(noise, torch.zeros_like(noise), 0.0))
    assert far == pytest.approx(math.sqrt(math.pi) / 2, rel=0.02)  # the mean length of a complex normal number
    assert 0.6 < float(laplacian_pyramid(noise, 1)[0].abs().mean()) < 0.8  # of 0.798 by L1


@pytest.mark.parametrize("width", [15, 16])
def test_half_of_the_spectrum_stands_for_the_whole(width: int) -> None:
    image = torch.randn(2, 3, 10, width)
    whole = torch.fft.fft2(image, norm="ortho").abs()
    weights = whole / whole.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(spectral_distance(image, 0 * image), (weights * whole).mean())
    torch.testing.assert_close(spectral_distance(image, 0 * image, 0.0), whole.mean())


def test_equal_images_have_no_distance_and_finite_gradients() -> None:
    image = torch.randn(1, 3, 16, 16)
    for distance in (lambda fake: pyramid_distance(fake, image, 3), lambda fake: spectral_distance(fake, image)):
        fake = image.clone().requires_grad_()
        found = distance(fake)
        found.backward()
        assert float(found.detach()) == 0
        assert bool(fake.grad.isfinite().all())


def test_autocast_does_not_round_them() -> None:
    image, reference = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    plain = pyramid_distance(image, reference, 3), spectral_distance(image, reference)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pyramid_distance(image, reference, 3), spectral_distance(image, reference)
    assert rounded == plain
