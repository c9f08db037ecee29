"""Features of image sets: equal for any batch size and number of processes, resumed, refused where not finite."""

from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch

from davae.data.image_list import ArrayImages
from davae.evaluate import stream
from davae.evaluate.processes import Processes
from davae.evaluate.stream import Extraction, FeatureRows, extract
from tiny_space import arrays, tiny_space


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SHARD", 5)


def counted(space):
    """The space, and the images that went through it."""
    seen = []

    def compute(inputs):
        seen.append(len(inputs))
        return space.compute(inputs)

    return replace(space, compute=compute), seen


IMAGES = ArrayImages(arrays(23, seed=1), "made")


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_features_do_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    space = tiny_space()
    inputs = np.stack([space.prepare(image) for image in arrays(23, seed=1)])
    want = space.compute(torch.from_numpy(inputs))["pool"].numpy()
    got = extract(IMAGES, space, ["pool"], Extraction(batch_size, folder=tmp_path))["pool"]
    assert got.shape == (23, 16)
    assert np.abs(got[:] - want).max() <= 1e-6 * np.abs(want).max()


def test_three_processes_do_every_image_once_and_give_the_same(tmp_path: Path) -> None:
    alone = extract(IMAGES, tiny_space(), ["pool", "logits"], Extraction(4, folder=tmp_path / "alone"))
    space, seen = counted(tiny_space())
    gathered: dict[int, list] = {}
    found: dict[int, dict[str, FeatureRows]] = {}
    barrier = Barrier(3)

    def process(rank: int) -> None:
        def gather(mine: list) -> list:
            gathered[rank] = mine
            barrier.wait()
            return [item for other in range(3) for item in gathered[other]]

        extraction = Extraction(4, folder=tmp_path / "three", processes=Processes(rank, 3, gather))
        found[rank] = extract(IMAGES, space, ["pool", "logits"], extraction)

    threads = [Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(seen) == 23
    for rank in range(3):
        for feature, rows in alone.items():
            assert np.array_equal(found[rank][feature][:], rows[:])


def test_what_is_there_is_not_computed_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    extraction = Extraction(4, folder=tmp_path)
    first = extract(IMAGES, tiny_space(), ["pool"], extraction)["pool"][:]
    space, seen = counted(tiny_space())
    assert np.array_equal(extract(IMAGES, space, ["pool"], extraction)["pool"][:], first)
    assert seen == []
    shard = sorted((tmp_path / "inception" / "pool").glob("*.npy"))[0]
    shard.write_bytes(shard.read_bytes()[:40])
    assert np.array_equal(extract(IMAGES, space, ["pool"], extraction)["pool"][:], first)
    assert 0 < sum(seen) <= 5


def test_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    space, extraction = tiny_space(), Extraction(5, folder=tmp_path)

    def breaking(inputs, calls=[]):  # noqa: B006 - counts its calls
        calls.append(len(inputs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return space.compute(inputs)

    with pytest.raises(KeyboardInterrupt):
        extract(IMAGES, replace(space, compute=breaking), ["pool"], extraction)
    again, seen = counted(space)
    extract(IMAGES, again, ["pool"], extraction)
    assert sum(seen) == 23 - 10


def test_other_images_weights_or_preprocessing_have_features_of_their_own(tmp_path: Path) -> None:
    extraction = Extraction(folder=tmp_path)
    changed = arrays(23, seed=1)
    changed[7] ^= 255
    for images, space, computed in (
        (IMAGES, tiny_space(), 23),
        (ArrayImages(changed, "made"), tiny_space(), 5),  # the shard of image 7
        (IMAGES, tiny_space(weights="1"), 23),
        (IMAGES, tiny_space(preprocessing="other"), 23),
    ):
        space, seen = counted(space)
        extract(images, space, ["pool"], extraction)
        assert sum(seen) == computed


def test_a_feature_that_is_not_finite_is_refused_with_the_image(tmp_path: Path) -> None:
    space = tiny_space()

    def poisoned(inputs):
        vectors = space.compute(inputs)
        vectors["pool"][-1, 3] = float("nan")
        return vectors

    with pytest.raises(FloatingPointError, match=r"Feature 'pool' of tiny is not finite for image 000004 of made"):
        extract(IMAGES, replace(space, compute=poisoned), ["pool"], Extraction(folder=tmp_path))
    assert not list(tmp_path.rglob("*.npy"))


def test_rows_are_taken_by_slice_and_by_number() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(12, 2)
    shards = [whole[:5], whole[5:6], whole[6:]]
    rows = FeatureRows([5, 1, 6], 2, shards.__getitem__)
    assert np.array_equal(rows[3:8], whole[3:8])
    numbers = np.array([11, 0, 5, 5, 4])
    assert np.array_equal(rows[numbers], whole[numbers])
