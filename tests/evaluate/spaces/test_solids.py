"""The judge that comes with the package: it names held-out renderings, and sees what an enlarged image lacks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from davae.core.pixels import enlarge, uint8_to_unit, unit_to_uint8
from davae.data.image_list import ArrayImages
from davae.data.solids import SolidsSource
from davae.evaluate.feature_scores import score_features
from davae.evaluate.metrics import feature_metrics
from davae.evaluate.spaces import solids
from davae.evaluate.spaces.space import FeatureSpace, Loading
from davae.evaluate.statistics import Reference
from davae.evaluate.stream import Extraction

COUNT = 72
HELD_OUT = SolidsSource(2 * COUNT, seed=424_242)


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return solids.load(Loading())


@pytest.fixture(scope="module")
def halves() -> list[torch.Tensor]:
    return [HELD_OUT.images(range(start, start + COUNT), 128) for start in (0, COUNT)]


def listed(images: torch.Tensor) -> ArrayImages:
    return ArrayImages(images.permute(0, 2, 3, 1).contiguous().numpy(), "images")


def scores(
    images: torch.Tensor, real: torch.Tensor, space: FeatureSpace, folder: Path, asked: list[str] | None, *names: str
) -> dict[str, float]:
    reference = Reference("real", listed(real))
    found = score_features(
        listed(images),
        reference,
        feature_metrics(names),
        lambda _: space,
        Extraction(folder=folder),
        "row",
        asked=asked,
    )
    return {item.column: item.value for item in found}


def test_it_names_held_out_renderings(space: FeatureSpace, halves: list[torch.Tensor], tmp_path: Path) -> None:
    found = scores(halves[0], halves[1], space, tmp_path, HELD_OUT.captions[:COUNT], "solids-accuracy")
    assert found["Shape accuracy"] >= 0.98
    assert found["Material accuracy"] >= 0.95
    assert found["Colour accuracy"] >= 0.85  # a word begins where the one before ends, somewhere on a circle


def test_it_sees_what_enlarged_images_lack(space: FeatureSpace, halves: list[torch.Tensor], tmp_path: Path) -> None:
    small = HELD_OUT.images(range(COUNT), 64)
    coarse = unit_to_uint8(enlarge(uint8_to_unit(small), 128))
    near = scores(halves[0], halves[1], space, tmp_path, None, "fd-solids", "solids-fineness")
    far = scores(coarse, halves[1], space, tmp_path, None, "fd-solids", "solids-fineness")
    assert far[f"FD-solids-{COUNT}"] > 2 * near[f"FD-solids-{COUNT}"]
    assert near["Fineness"] > 0.9 > 0.75 > far["Fineness"]


def test_an_image_of_another_size_is_brought_to_the_judges(space: FeatureSpace) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert np.array_equal(space.prepare(image), image.transpose(2, 0, 1) / np.float32(127.5) - 1)
    assert space.prepare(image[:64, :80]).shape == (3, 128, 128)


def test_a_folder_without_a_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no judge of solids in .* 'davae train-judge'"):
        solids.load(Loading(str(tmp_path)))
