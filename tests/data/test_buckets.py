"""Aspect-ratio buckets: sizes of one area, images in the one that crops least of them, none enlarged."""

import math

import pytest

from davae.data.buckets import Size, assign, bucket_sizes

SETS = [(1024, 32, 2.0), (1024, 64, 2.0), (2048, 32, 4.0), (512, 16, 1.5), (64, 16, 2.0), (32, 32, 9.0)]


@pytest.mark.parametrize(("image_size", "unit", "max_ratio"), SETS)
def test_sizes_have_one_area_and_fit_the_grid(image_size: int, unit: int, max_ratio: float) -> None:
    sizes = bucket_sizes(image_size, unit, max_ratio)
    assert (image_size, image_size) in sizes
    assert len(set(sizes)) == len(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)
    shapes = [height / width for height, width in sizes]
    assert shapes == sorted(shapes)
    for height, width in sizes:
        assert height % unit == width % unit == 0
        assert max(height, width) <= max_ratio * min(height, width)
        assert abs(height * width - image_size**2) <= max(height, width) * unit / 2


def test_sizes_of_the_paper_scale() -> None:
    sizes = bucket_sizes(1024, 32)
    assert (len(sizes), sizes[0], sizes[13], sizes[-1]) == (27, (736, 1440), (1024, 1024), (1440, 736))
    assert all(abs(height * width / 1024**2 - 1) < 0.016 for height, width in sizes)
    assert bucket_sizes(1024, 32, 1) == ((1024, 1024),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 32), "image_size 1000 in units of 32 pixels; allowed are positive multiples"),
        ((0, 32), "image_size 0"),
        ((64, 0), "units of 0"),
        ((64, 16, 0.5), "ratio 0.5; allowed are 1"),
        ((64, 16, math.nan), "ratio nan"),
        ((64, 16, math.inf), "ratio inf"),
    ],
)
def test_impossible_sizes_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bucket_sizes(*arguments)


def images() -> list[Size]:
    return [(height, width) for height in range(30, 200, 7) for width in range(30, 200, 7)]


def cropped(image: Size, bucket: Size) -> float:
    """Share of an image that is lost when it is shrunk until it just fills a bucket."""
    scale = max(bucket[0] / image[0], bucket[1] / image[1])
    return 1 - bucket[0] * bucket[1] / (image[0] * image[1] * scale**2)


def test_images_go_where_least_is_cropped_and_are_never_enlarged() -> None:
    buckets = bucket_sizes(64, 16)
    seen = set()
    for image, choice in zip(images(), assign(images(), buckets), strict=True):
        filled = [bucket for bucket in buckets if bucket[0] <= image[0] and bucket[1] <= image[1]]
        seen.add(choice)
        if choice is None:
            assert not filled
        else:
            assert buckets[choice] in filled
            assert cropped(image, buckets[choice]) <= min(cropped(image, other) for other in filled) + 1e-9
    assert seen == {None, *range(len(buckets))}


def test_an_image_too_small_for_the_nearest_goes_to_one_that_it_fills() -> None:
    buckets = ((48, 80), (64, 64), (80, 48))
    assert assign([(64, 64), (60, 64), (50, 90), (79, 47), (100, 60)], buckets) == [1, None, 0, None, 2]
    assert assign([(60, 80), (63, 85)], buckets) == [0, 0]  # nearest in shape would be the square
    assert assign([], buckets) == []


def test_of_equal_shapes_the_larger_one_is_taken() -> None:
    assert assign([(100, 100), (50, 50)], ((32, 32), (64, 64))) == [1, 0]
