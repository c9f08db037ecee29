"""Generated images and latents on disk: every form is resumed at the unit, and is whole or absent."""

import json
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from davae.core.files import replacing
from davae.data.errors import DataError
from davae.sampling.image_formats import IMAGE, GeneratedImage, write_npz
from davae.sampling.latent_shards import LatentShards
from davae.sampling.store import FormatName, ImageStore

SIDE, COUNT = 6, 10
INPUTS = {"seed": 3}
FORMS: list[FormatName] = ["png", "jpg", "npz", "tar"]


def image_of(index: int, kind: str = IMAGE) -> Tensor:
    """uint8 [3, SIDE, SIDE], each image from its own number."""
    generator = torch.Generator().manual_seed(1000 * len(kind) + index)
    return torch.randint(0, 256, (3, SIDE, SIDE), generator=generator).to(torch.uint8)


def images_of(indices: Sequence[int]) -> NDArray[np.uint8]:
    """uint8 [B, SIDE, SIDE, 3]."""
    return torch.stack([image_of(index) for index in indices]).permute(0, 2, 3, 1).numpy()


def latents_of(indices: Sequence[int]) -> Tensor:
    return torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 1) + 1 / 3


def generated(index: int, kinds: Sequence[str] = (IMAGE,)) -> GeneratedImage:
    images = {kind: image_of(index, kind) for kind in kinds}
    return GeneratedImage(index, images, f"caption {index}", {"seed": index})


def parts_of(store: ImageStore, unit: Sequence[int], size: int = 2) -> Iterator[list[GeneratedImage]]:
    for start in range(0, len(unit), size):
        yield [generated(index, store.kinds) for index in unit[start : start + size]]


def store_in(folder: Path, *formats: FormatName, **settings: Any) -> ImageStore:
    return ImageStore(folder, INPUTS, **({"count": COUNT, "unit": 4, "formats": formats} | settings))


def complete(store: ImageStore) -> ImageStore:
    """Keep what is missing."""
    store.begin()
    for unit in store.missing():
        store.write(unit, parts_of(store, unit))
    store.finish([f"caption {index}" for index in range(store.count)])
    return store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"inputs.json", "metadata.jsonl"}


def numbered(count: int, suffix: str) -> set[str]:
    return {f"{index:06d}.{suffix}" for index in range(count)}


OUTPUTS = {
    "png": numbered(COUNT, "png"),
    "jpg": numbered(COUNT, "jpg"),
    "npz": {"images.npz"},
    "tar": numbered(3, "tar"),
}


def read_as_evaluator(path: Path) -> NDArray[np.uint8]:
    """guided-diffusion's evaluator: opens the member, reads the header itself, then the rows as a stream."""
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["arr_0.npy"]
        with archive.open("arr_0.npy") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            assert (is_fortran, dtype) == (False, np.uint8)
            rows = file.read()  # to the end, where the checksum is compared
    return np.frombuffer(rows, np.uint8).reshape(shape)


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_store_goes_on_at_the_unit(tmp_path: Path, form: FormatName) -> None:
    def stops(unit: Sequence[int]) -> Iterator[list[GeneratedImage]]:
        yield [generated(unit[0])]
        raise KeyboardInterrupt

    store = store_in(tmp_path / "stopped", form)
    assert [list(unit) for unit in store.missing()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    store.begin()
    store.write(store.units[0], parts_of(store, store.units[0]))
    stamps = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        store.write(store.units[1], stops(store.units[1]))
    assert not [name for name in names(store.folder) if name.startswith(".")]

    again = store_in(tmp_path / "stopped", form)
    assert [unit[0] for unit in again.missing()] == [4, 8]
    for unit in again.missing():
        again.write(unit, parts_of(again, unit))
    assert again.missing() == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    again.finish([f"caption {index}" for index in range(COUNT)])
    assert store_in(tmp_path / "stopped", form).missing() == []
    assert names(again.folder) == OUTPUTS[form]

    whole = complete(store_in(tmp_path / "whole", form))
    assert names(whole.folder) == OUTPUTS[form]
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (again.folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("form", "writer"),
    [
        ("png", "pathlib.Path.write_bytes"),
        ("jpg", "pathlib.Path.write_bytes"),
        ("npz", "davae.data.cache_files.save_tensors"),
        ("tar", "tarfile.TarFile.addfile"),
    ],
)
def test_what_cannot_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: FormatName, writer: str
) -> None:
    store = store_in(tmp_path, form)
    store.begin()

    def fails(*arguments: Any, **_: Any) -> None:
        for path in arguments:
            if isinstance(path, Path):
                path.open("wb").write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(writer, fails)
    with pytest.raises((OSError, DataError), match="No space left"):
        store.write(store.units[0], parts_of(store, store.units[0]))
    assert names(tmp_path) == set()
    assert len(store.missing()) == 3


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_files_hold_the_image_and_its_facts(tmp_path: Path, form: FormatName) -> None:
    store = complete(store_in(tmp_path, form, kinds=(IMAGE, "preview"), facts=True))
    previews = {f"{index:06d}-preview.{form}" for index in range(COUNT)}
    assert names(tmp_path) == numbered(COUNT, form) | previews | numbered(COUNT, "json")
    assert (tmp_path / "000007.json").read_text() == '{"seed": 7}'
    for kind in (IMAGE, "preview"):
        pixels = store.read([7, 2], kind)
        assert (pixels.shape, pixels.dtype) == ((2, 3, SIDE, SIDE), torch.uint8)
        difference = (pixels.int() - torch.stack([image_of(7, kind), image_of(2, kind)]).int()).abs().float()
        assert difference.mean() == 0 if form == "png" else 0 < difference.mean() < 12  # noise is hard for JPEG
    (tmp_path / f"000005-preview.{form}").unlink()
    assert [unit[0] for unit in store.missing()] == [4]


@pytest.mark.parametrize("members", ["png", "jpg"])
def test_a_shard_holds_samples_as_webdataset_has_them(tmp_path: Path, members: Any) -> None:
    store = complete(store_in(tmp_path, "tar", members=members, kinds=(IMAGE, "baseline"), facts=True))
    with tarfile.open(tmp_path / "000002.tar") as shard:
        assert shard.getnames() == [
            f"00000000{index}.{end}" for index in (8, 9) for end in (members, f"baseline.{members}", "txt", "json")
        ]
        contents = {member.name: shard.extractfile(member) for member in shard.getmembers()}
        assert {name: file.read() for name, file in contents.items() if file and name.endswith(("txt", "json"))} == {
            "000000008.txt": b"caption 8",
            "000000008.json": b'{"seed": 8}',
            "000000009.txt": b"caption 9",
            "000000009.json": b'{"seed": 9}',
        }
    assert store.missing() == []
    # The number of a shard is that of its unit, also where units are of another size.
    other = store_in(tmp_path / "other", "tar", unit=3)
    other.begin()
    other.write(other.units[2], parts_of(other, other.units[2]))
    assert [unit[0] for unit in other.missing()] == [0, 3, 9]


@pytest.mark.parametrize("formats", [("npz",), ("png", "npz"), ("npz", "png"), ("jpg", "npz")])
def test_the_npz_holds_every_image_in_order(tmp_path: Path, formats: tuple[FormatName, ...]) -> None:
    store = store_in(tmp_path, *formats)
    store.begin()
    store.write(store.units[1], parts_of(store, store.units[1]))
    waits = "npz" in formats and len(formats) == 1
    assert (names(tmp_path) == {"images-000004.safetensors"}) == waits
    complete(store)
    assert names(tmp_path) == set().union(*(OUTPUTS[form] for form in formats))
    want = store.read(range(COUNT)).permute(0, 2, 3, 1).numpy() if "jpg" in formats else images_of(range(COUNT))
    np.testing.assert_array_equal(read_as_evaluator(tmp_path / "images.npz"), want)
    with np.load(tmp_path / "images.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], want)


def test_an_npz_is_streamed_and_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"

    def parts() -> Iterator[NDArray[np.uint8]]:
        for first in range(0, 6, 2):
            assert not path.exists()
            yield np.full((2, 3, 4, 3), first, np.uint8)

    write_npz(path, parts(), 6)
    assert read_as_evaluator(path).mean(axis=(1, 2, 3)).tolist() == [0, 0, 2, 2, 4, 4]
    for count in (5, 7):
        with pytest.raises(ValueError, match=f"was to hold {count} images; got 6"):
            write_npz(tmp_path / "other.npz", parts=[np.zeros((6, 2, 2, 3), np.uint8)], count=count)
    assert names(tmp_path) == {"images.npz"}


@pytest.mark.parametrize(
    ("formats", "row"),
    [
        (("png", "npz"), {"file_name": "000003.png"}),
        (("jpg",), {"file_name": "000003.jpg"}),
        (("npz",), {}),
        ((), {}),
    ],
)
def test_a_list_says_what_every_image_is_of(
    tmp_path: Path, formats: tuple[FormatName, ...], row: dict[str, str]
) -> None:
    complete(store_in(tmp_path, *formats))
    rows = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert len(rows) == COUNT
    assert json.loads(rows[3]) == {**row, "text": "caption 3"}


def test_no_form_keeps_nothing_and_is_always_done(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    assert store.missing() == []
    store.begin()
    store.write(store.units[0], parts_of(store, store.units[0]))
    assert names(tmp_path) == set()


def test_processes_share_the_units(tmp_path: Path) -> None:
    store = store_in(tmp_path, "png", unit=2)
    store.begin()
    store.write(store.units[2], parts_of(store, store.units[2]))
    assert [[unit[0] for unit in store.missing(process, 2)] for process in (0, 1)] == [[0, 8], [2, 6]]


@pytest.mark.parametrize(
    ("formats", "keep", "left"),
    [
        (("png", "jpg", "npz", "tar"), COUNT, numbered(COUNT, "png") | numbered(COUNT, "jpg") | numbered(2, "tar")),
        (("png", "jpg", "npz", "tar"), 7, numbered(7, "png") | numbered(7, "jpg") | numbered(1, "tar")),
        (("png",), COUNT, numbered(COUNT, "png")),
        (("tar",), 8, numbered(2, "tar")),
        (("npz",), COUNT, set()),
        ((), COUNT, set()),
        (("png",), 0, set()),
    ],
)
def test_discarding_leaves_the_first_images_in_the_forms_that_are_asked_for(
    tmp_path: Path, formats: tuple[FormatName, ...], keep: int, left: set[str]
) -> None:
    store = complete(store_in(tmp_path, *FORMS))
    store.show(Image.new("RGB", (2, 2)))
    (tmp_path / "images-000004.safetensors").touch()
    foreign = {"0 my notes.png", "1st.tar", "notes.jpg"}
    for name in foreign:
        (tmp_path / name).touch()
    store_in(tmp_path, *formats).discard(keep)
    assert names(tmp_path) == left | foreign


def test_discarding_takes_what_stands_beside_an_image(tmp_path: Path) -> None:
    store = complete(store_in(tmp_path, "jpg", kinds=(IMAGE, "preview"), facts=True))
    store.discard(1)
    assert names(tmp_path) == {"000000.jpg", "000000-preview.jpg", "000000.json"}
    ImageStore(tmp_path / "nowhere", {}, 3, unit=2, formats=["png"]).discard(0)  # there is nothing to remove


@pytest.mark.parametrize("damage", ["", '{"se', "null", "[]"])
def test_a_folder_that_does_not_say_of_which_settings_it_is_holds_nothing(tmp_path: Path, damage: str) -> None:
    store = complete(store_in(tmp_path, "png"))
    assert store.stored_inputs == INPUTS
    (tmp_path / "inputs.json").write_text(damage)
    assert store.stored_inputs is None


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty"])
def test_a_damaged_file_is_missing_and_drawn_again(tmp_path: Path, form: FormatName, damage: str) -> None:
    store = complete(store_in(tmp_path, form, count=4))
    path = next(path for path in sorted(tmp_path.iterdir()) if path.suffix == f".{form}")
    whole = path.read_bytes()
    if damage == "a bit" and form == "jpg":
        pytest.skip("a JPEG has no checksum")
    middle = whole.index(b"IDAT") + 20 if form in ("png", "tar") else len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]
    path.write_bytes({"cut off": whole[: len(whole) // 2], "a bit": flipped, "empty": b""}[damage])
    assert store.missing() == store.units
    complete(store)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("form", ["png", "tar"])
def test_a_later_series_has_the_next_numbers(tmp_path: Path, form: FormatName) -> None:
    complete(store_in(tmp_path, form, count=4))
    store = store_in(tmp_path, form, count=3, first=8)
    assert store.units == [range(8, 11)]
    store.write(store.units[0], parts_of(store, store.units[0]))
    assert store.missing() == []
    later = {"000002.tar"} if form == "tar" else {f"{index:06d}.png" for index in (8, 9, 10)}
    assert names(tmp_path) == later | ({"000000.tar"} if form == "tar" else numbered(4, "png"))


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    store = store_in(tmp_path / "out", "png")
    store.begin()
    with replacing(store.folder / "000001.png") as temporary:
        temporary.touch()
        left = temporary.with_name(temporary.name.replace(f".{os.getpid()}.", ".999999999."))
    left.touch()
    store.begin()
    assert names(store.folder) == {"000001.png"}
    assert store.stored_inputs == INPUTS


def test_a_grid_that_cannot_be_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path, "png")
    store.show(Image.new("RGB", (3, 2)))
    with Image.open(tmp_path / "grid.png") as grid:
        assert (grid.format, grid.size) == ("PNG", (3, 2))
    (tmp_path / "grid.png").unlink()

    def fails(image: Image.Image, path: Path, form: str) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="No space left"):
        store.show(Image.new("RGB", (3, 2)))
    assert names(tmp_path) == set()


UNITS = [range(0, 4), range(4, 8), range(8, 10)]


def drawn_latents(folder: Path) -> LatentShards:
    latents = LatentShards(folder, UNITS)
    for unit in UNITS:
        latents.save(unit, latents_of(unit))
    return latents


def test_latents_are_kept_in_half_precision_and_read_as_they_were_decoded(tmp_path: Path) -> None:
    latents = LatentShards(tmp_path, UNITS)
    assert not latents.has(UNITS[0])
    stored = latents.save(UNITS[0], latents_of(UNITS[0]))
    assert (stored.dtype, latents.has(UNITS[0]), latents.has(UNITS[1])) == (torch.float32, True, False)
    assert torch.equal(latents.load(UNITS[0]), stored)
    torch.testing.assert_close(stored, latents_of(UNITS[0]), rtol=1e-3, atol=0)
    assert load_file(tmp_path / "latents-000000.safetensors")["latent"].dtype == torch.float16


def test_the_first_latents_are_read_shard_by_shard(tmp_path: Path) -> None:
    latents = drawn_latents(tmp_path)
    assert [len(part) for part in latents.first(9)] == [4, 4, 1]
    assert [len(part) for part in latents.first(4)] == [4]
    assert [len(part) for part in latents.first(99)] == [4, 4, 2]
    torch.testing.assert_close(torch.cat(list(latents.first(9))), latents_of(range(9)), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("units", "left"),
    [
        (UNITS, [0, 4, 8]),
        ([*UNITS[:2], range(8, 12)], [0, 4]),  # the last shard has grown
        ([range(0, 4), range(4, 5)], [0]),  # it has become smaller
        ([range(0, 8), range(8, 10)], [8]),
    ],
)
def test_only_shards_of_the_units_are_kept(tmp_path: Path, units: list[range], left: list[int]) -> None:
    drawn_latents(tmp_path)
    LatentShards(tmp_path, units).discard(keep=True)
    assert names(tmp_path) == {f"latents-{first:06d}.safetensors" for first in left}
    LatentShards(tmp_path, units).discard(keep=False)
    assert names(tmp_path) == set()


def test_a_shard_of_latents_that_cannot_be_written_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("davae.data.cache_files.save_tensors", fails)
    with pytest.raises(DataError, match="No space left"):
        LatentShards(tmp_path, UNITS).save(UNITS[0], latents_of(UNITS[0]))
    assert names(tmp_path) == set()
