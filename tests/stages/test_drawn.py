"""samples/ on disk: what is kept, what is dropped, and the npz as FID tools read it."""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from davae.recipe import SampleConfig
from davae.stages.drawn import Drawn, write_npz

SIDE = 6


def images_of(indices: Sequence[int]) -> Tensor:
    """uint8 [B, 3, SIDE, SIDE], each image from its own number."""
    return torch.stack(
        [
            torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(i)).to(torch.uint8)
            for i in indices
        ]
    )


def latents_of(indices: Sequence[int]) -> Tensor:
    return torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 1) + 1 / 3


def drawn(folder: Path, pipeline: str = "one", **settings: Any) -> Drawn:
    config = SampleConfig(**({"count": 10, "batch_size": 4} | settings))
    inputs = {"sample": json.loads(json.dumps(vars(config))), "pipeline": pipeline}
    return Drawn(folder, config, inputs)


def complete(samples: Drawn, parts: slice = slice(None)) -> list[int]:
    """Draw what is missing of some batches; returns the first image of every batch that was drawn anew."""
    samples.prepare()
    anew = []
    for batch in samples.batches[parts]:
        if not samples.has_latents(batch):
            anew.append(batch[0])
            samples.store_latents(batch, latents_of(batch))
        if not samples.has_images(batch):
            samples.store_images(batch, images_of(batch))
    if parts == slice(None):
        samples.finish([f"class {index}" for index in range(samples.config.count)])
    return anew


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"inputs.json", "metadata.jsonl"}


def pngs(count: int) -> set[str]:
    return {f"{index:06d}.png" for index in range(count)}


SHARDS = {f"latents-{first:06d}.safetensors" for first in (0, 4, 8)}


def read_as_evaluator(path: Path) -> np.ndarray:
    """guided-diffusion's evaluator: opens the member, reads the header itself, then the rows as a stream."""
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["arr_0.npy"]
        with archive.open("arr_0.npy") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert (is_fortran, dtype) == (False, np.uint8)
            rows = file.read()  # to the end, where the checksum is compared
    return np.frombuffer(rows, np.uint8).reshape(shape)


@pytest.mark.parametrize("png", [True, False])
def test_the_npz_holds_every_image_in_order(tmp_path: Path, png: bool) -> None:
    samples = drawn(tmp_path / "samples", png=png, npz=True)
    assert complete(samples) == [0, 4, 8]
    want = images_of(range(10)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(read_as_evaluator(samples.npz), want)
    with np.load(samples.npz) as archive:
        np.testing.assert_array_equal(archive["arr_0"], want)
    assert names(samples.folder) == SHARDS | {"images.npz"} | (pngs(10) if png else set())
    if png:
        np.testing.assert_array_equal(np.asarray(Image.open(samples.folder / "000007.png")), want[7])
    rows = (samples.folder / "metadata.jsonl").read_text().splitlines()
    assert json.loads(rows[3]) == {**({"file_name": "000003.png"} if png else {}), "text": "class 3"}


def test_an_npz_is_streamed_and_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"

    def parts() -> Iterator[np.ndarray]:
        for first in range(0, 6, 2):
            assert not path.exists()
            yield np.full((2, 3, 4, 3), first, np.uint8)

    write_npz(path, parts(), 6)
    assert read_as_evaluator(path).mean(axis=(1, 2, 3)).tolist() == [0, 0, 2, 2, 4, 4]
    for count in (5, 7):
        with pytest.raises(ValueError, match=f"was to hold {count} images; got 6"):
            write_npz(tmp_path / "other.npz", parts=[np.zeros((6, 2, 2, 3), np.uint8)], count=count)
    assert names(tmp_path) == {"images.npz"}


def test_neither_form_leaves_latents_alone(tmp_path: Path) -> None:
    samples = drawn(tmp_path, png=False)
    complete(samples)
    assert names(tmp_path) == SHARDS


def test_latents_are_kept_in_half_precision_and_read_as_they_were_decoded(tmp_path: Path) -> None:
    samples = drawn(tmp_path)
    samples.prepare()
    stored = samples.store_latents([0, 1], latents_of([0, 1]))
    assert stored.dtype == torch.float32
    assert torch.equal(samples.latents([0, 1]), stored)
    torch.testing.assert_close(stored, latents_of([0, 1]), rtol=1e-3, atol=0)


def test_an_interrupted_run_goes_on_at_the_batch(tmp_path: Path) -> None:
    assert complete(drawn(tmp_path), slice(0, 2)) == [0, 4]
    (tmp_path / "000005.png").unlink()  # stopped between latents and images: decoded, not drawn again
    with pytest.raises(ValueError, match="holds 8 of 10 samples"):
        drawn(tmp_path).require_all()
    assert complete(drawn(tmp_path)) == [8]
    drawn(tmp_path).require_all()
    assert names(tmp_path) == SHARDS | pngs(10)


@pytest.mark.parametrize(
    ("change", "anew", "left"),
    [
        ({"npz": True}, [], SHARDS | pngs(10) | {"images.npz"}),
        ({"npz": True, "png": False}, [], SHARDS | {"images.npz"}),
        ({"png": False}, [], SHARDS),
        ({"count": 12}, [8], SHARDS | pngs(12)),
        ({"count": 17}, [8, 12, 16], pngs(17) | SHARDS | {f"latents-0000{i}.safetensors" for i in (12, 16)}),
        ({"count": 8}, [], pngs(8) | {f"latents-00000{i}.safetensors" for i in (0, 4)}),
        ({"count": 5}, [4], pngs(5) | {f"latents-00000{i}.safetensors" for i in (0, 4)}),
        ({"steps": 7}, [0, 4, 8], SHARDS | pngs(10)),
        ({"batch_size": 8}, [0, 8], {f"latents-00000{i}.safetensors" for i in (0, 8)} | pngs(10)),
        ({"pipeline": "two"}, [0, 4, 8], SHARDS | pngs(10)),
    ],
)
def test_only_what_other_settings_drew_is_drawn_again(
    tmp_path: Path, change: dict[str, Any], anew: list[int], left: set[str]
) -> None:
    complete(drawn(tmp_path))
    samples = drawn(tmp_path, **change)
    with pytest.raises(ValueError, match="does not hold samples of these settings"):
        samples.require_all()
    assert complete(samples) == anew
    assert names(tmp_path) == left
    samples.require_all()
    latents = torch.cat(list(samples.first_latents(samples.config.count)))
    torch.testing.assert_close(latents, latents_of(range(samples.config.count)), rtol=1e-3, atol=0)
    if samples.config.npz:
        np.testing.assert_array_equal(
            read_as_evaluator(samples.npz), images_of(range(samples.config.count)).permute(0, 2, 3, 1).numpy()
        )


def test_a_changed_count_makes_the_npz_anew(tmp_path: Path) -> None:
    complete(drawn(tmp_path, npz=True))
    complete(drawn(tmp_path, npz=True, count=8))  # no batch is missing
    assert len(read_as_evaluator(tmp_path / "images.npz")) == 8


def test_the_first_latents_are_read_shard_by_shard(tmp_path: Path) -> None:
    samples = drawn(tmp_path)
    complete(samples)
    assert [len(part) for part in samples.first_latents(9)] == [4, 4, 1]
    assert [len(part) for part in samples.first_latents(4)] == [4]
