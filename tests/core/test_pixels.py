"""Pixel ranges, and the enlargement that everything is compared with."""

import pytest
import torch
import torch.nn.functional as F

from davae.core.pixels import (
    enlarge,
    signed_to_unit,
    uint8_to_signed,
    uint8_to_unit,
    unit_to_signed,
    unit_to_uint8,
)

ALL = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)


def test_every_8_bit_value_survives_every_way_round() -> None:
    assert torch.equal(unit_to_uint8(signed_to_unit(uint8_to_signed(ALL))), ALL)
    assert torch.equal(unit_to_uint8(uint8_to_unit(ALL)), ALL)
    assert torch.equal(unit_to_uint8(signed_to_unit(unit_to_signed(uint8_to_unit(ALL)))), ALL)


def test_ranges_have_their_ends_and_float32() -> None:
    for images, low, high in ((uint8_to_signed(ALL), -1, 1), (uint8_to_unit(ALL), 0, 1)):
        assert images.dtype == torch.float32
        assert images.min() == low
        assert images.max() == high
    assert torch.equal(unit_to_signed(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_signed_images_lie_channels_last() -> None:
    images = uint8_to_signed(torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()


def test_what_overshoots_is_clamped() -> None:
    overshooting = torch.tensor([-7.0, -1.0, 1.0, 7.0])
    assert torch.equal(signed_to_unit(overshooting), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert unit_to_uint8(overshooting).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_left_before_anything_is_computed(dtype: torch.dtype) -> None:
    images = (torch.rand(1, 3, 8, 8) * 2 - 1).to(dtype)
    assert torch.equal(signed_to_unit(images), (images.float() + 1) / 2)
    unit = torch.rand(1, 3, 8, 8).to(dtype)
    assert torch.equal(unit_to_uint8(unit), (unit.float() * 255).round().to(torch.uint8))
    assert enlarge(images, 16).dtype == torch.float32
    assert torch.equal(enlarge(images, 16), enlarge(images.float(), 16))


def test_8_bits_are_rounded_and_not_cut_off() -> None:
    assert unit_to_uint8(torch.tensor([0.49, 0.51, 254.4, 254.6]) / 255).tolist() == [0, 1, 254, 255]


@pytest.mark.parametrize("scale", [2, 4])
def test_enlarging_is_bicubic_with_aligned_pixel_centres(scale: int) -> None:
    images = torch.randn(2, 3, 5, 7)
    large = enlarge(images, (5 * scale, 7 * scale))
    assert torch.equal(large, F.interpolate(images, scale_factor=scale, mode="bicubic", align_corners=False))
    # The value between two pixels, by the kernel of Keys (1981) with a = -0.75 at distances 1/4, 3/4, 5/4, 7/4.
    row = enlarge(images, (5, 14))
    weights = torch.tensor([-0.03515625, 0.26171875, 0.87890625, -0.10546875])
    torch.testing.assert_close(row[..., 6], images[..., 1:5] @ weights)
    assert torch.equal(enlarge(images[..., :5], 10), enlarge(images[..., :5], (10, 10)))


def test_enlarging_overshoots_and_keeps_constants() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    assert enlarge(edge, 16).max() > 1
    assert enlarge(edge, 16).min() < 0
    torch.testing.assert_close(enlarge(torch.full((1, 3, 8, 8), 0.3), 16), torch.full((1, 3, 16, 16), 0.3))
