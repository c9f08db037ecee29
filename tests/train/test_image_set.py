"""Images in training: crops and mirror images are matters of the position alone."""

import pytest
import torch
from torch import Tensor

from davae.data.solids import SolidsSource
from davae.train.image_set import ImageSet


def test_images_depend_on_their_position_alone() -> None:
    source = SolidsSource(6, seed=2)
    together = ImageSet(source, 16, seed=1).__getitems__(list(range(12)))
    assert together["image"].shape == (12, 3, 16, 16)
    assert together["image"].dtype == torch.uint8
    assert together["position"].tolist() == list(range(12))
    for position in (11, 0, 5):
        alone = ImageSet(source, 16, seed=1).__getitems__([position])
        assert torch.equal(alone["image"][0], together["image"][position])
    other = ImageSet(source, 16, seed=2).__getitems__(list(range(12)))
    assert not torch.equal(other["image"], together["image"])


def test_half_of_the_images_are_mirrored() -> None:
    source = SolidsSource(4, seed=0)
    flipping, still = ImageSet(source, 8, seed=0), ImageSet(source, 8, seed=0, flip=False)
    batch, plain = (images.__getitems__(list(range(200)))["image"] for images in (flipping, still))
    same = (batch == plain).flatten(1).all(dim=1)
    mirrored = (batch == plain.flip(-1)).flatten(1).all(dim=1)
    assert bool((same | mirrored).all())
    assert 70 < int(mirrored.sum()) < 130
    # A sample is not bound to one side: later epochs mirror it anew.
    indices = torch.tensor(flipping.order.indices(range(200)))
    assert 0 < int(mirrored[indices == 0].sum()) < int((indices == 0).sum())


class Places:
    """An `ImageSource` whose pixels say where they are: channels are row, column and number of the image."""

    def __len__(self) -> int:
        return 6

    def images(self, indices: list[int], size: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        images = [torch.stack([rows, columns, torch.full_like(rows, index)]) for index in indices]
        return torch.stack(images).to(torch.uint8)


def test_crops_are_windows_of_the_larger_image() -> None:
    cropping = ImageSet(Places(), 16, seed=1, flip=False, crop_from=24)
    positions = list(range(300))
    batch = cropping.__getitems__(positions)["image"]
    whole = Places().images(cropping.order.indices(positions), 24)
    corners = batch[:, :2, 0, 0].tolist()
    for window, image, (top, left) in zip(batch, whole, corners, strict=True):
        assert torch.equal(window, image[:, top : top + 16, left : left + 16])
    tops, lefts = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    assert tops == lefts == list(range(9))  # to the last row and column
    assert len({tuple(corner) for corner in corners}) > 60  # of 81: one does not follow from the other
    assert 3.5 < float(batch[:, 0, 0, 0].float().mean()) < 4.5
    # A sample is not bound to one window: later epochs cut anew.
    assert len({tuple(corner) for image, corner in zip(whole, corners, strict=True) if image[2, 0, 0] == 3}) > 20


def test_crops_depend_on_their_position_alone() -> None:
    def crops(positions: list[int], seed: int = 1) -> Tensor:
        return ImageSet(Places(), 8, seed, crop_from=24).__getitems__(positions)["image"]

    together = crops(list(range(40)))
    assert torch.equal(crops([31, 7, 7, 0]), together[[31, 7, 7, 0]])
    assert not torch.equal(crops(list(range(40)), seed=2), together)
    still = ImageSet(Places(), 8, 1, flip=False, crop_from=24).__getitems__(list(range(40)))["image"]
    mirrored = (together == still.flip(-1)).flatten(1).all(dim=1)
    assert bool((mirrored | (together == still).flatten(1).all(dim=1)).all())  # the window, perhaps mirrored
    assert 0 < int(mirrored.sum()) < 40


@pytest.mark.parametrize("crop_from", [None, 16])
def test_whole_images_are_not_cropped(crop_from: int | None) -> None:
    whole = ImageSet(Places(), 16, seed=0, flip=False, crop_from=crop_from)
    batch = whole.__getitems__(list(range(6)))["image"]
    assert torch.equal(batch, Places().images(whole.order.indices(range(6)), 16))


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="Cannot crop 32 px from images of crop_from 24 px; allowed 32 or more"):
        ImageSet(Places(), 32, seed=0, crop_from=24)
