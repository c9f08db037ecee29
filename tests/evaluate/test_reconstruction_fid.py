"""rFID as images come: equal to that of whole sets, rounded as files are, originals counted once."""

import numpy as np
import pytest
import torch

from davae.evaluate.distances.frechet import frechet, moments_of
from davae.evaluate.reconstruction_fid import ReconstructionFID
from tiny_space import arrays, tiny_space

CPU = torch.device("cpu")


def unit(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255


def test_distances_in_passing_are_those_of_whole_sets() -> None:
    originals, rebuilt = arrays(30, seed=1), arrays(30, seed=2)
    fid, space = ReconstructionFID(tiny_space(), CPU), tiny_space()
    for _ in range(2):  # a second autoencoder sees the same originals
        for start in range(0, 30, 7):
            fid.originals(unit(originals[start : start + 7]), start)
        fid = fid.beside()
    for start in range(0, 30, 7):
        fid.rebuilt("a", unit(rebuilt[start : start + 7]) + 0.0019)  # less than half a level of 8 bits
    vectors = [
        space.compute(torch.from_numpy(np.stack([space.prepare(image) for image in images])))["pool"].numpy()
        for images in (rebuilt, originals)
    ]
    score = fid.scores(["a"])["a"]
    assert score.column == "rFID-30"
    assert score.value == pytest.approx(frechet(*map(moments_of, vectors)), rel=1e-6)


def test_one_image_has_no_distance() -> None:
    fid = ReconstructionFID(tiny_space(), CPU)
    fid.originals(unit(arrays(1, seed=1)), 0)
    fid.rebuilt("a", unit(arrays(1, seed=1)))
    assert fid.scores(["a"]) == {}


def test_there_is_none_without_weights() -> None:
    assert ReconstructionFID.at_hand(CPU) is None
