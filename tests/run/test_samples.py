"""samples/ of a run: what is kept when settings change, and a folder that an earlier version wrote."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from davae.core.files import folder_hash
from davae.recipe import parse_recipe
from davae.run.run import Run
from davae.run.samples import Samples
from davae.sampling.image_formats import IMAGE, GeneratedImage
from tiny_pair import build_tiny_pair

SIDE = 6


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def other_pair(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with another scheduler."""
    other = Path(shutil.copytree(pair, tmp_path_factory.mktemp("other") / "pair"))
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"shift": 2.0}))
    return other


def images_of(indices: Sequence[int]) -> Tensor:
    """uint8 [B, 3, SIDE, SIDE], each image from its own number."""
    generators = [torch.Generator().manual_seed(index) for index in indices]
    images = [torch.randint(0, 256, (3, SIDE, SIDE), generator=generator) for generator in generators]
    return torch.stack(images).to(torch.uint8)


def latents_of(indices: Sequence[int]) -> Tensor:
    return torch.tensor(indices, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 1, 1) + 1 / 3


def samples_of(runs: Path, pair: Path, **settings: Any) -> Samples:
    sample = {"count": 10, "batch_size": 4} | settings
    return Samples(Run(parse_recipe({"name": "run", "pair": str(pair), "image_size": 16, "sample": sample}), runs))


def complete(samples: Samples, units: slice = slice(None)) -> list[int]:
    """Draw what is missing of some units; returns the first image of every unit that was drawn anew."""
    samples.prepare()
    store, anew = samples.store, []
    for unit in store.units[units]:
        if not samples.latents.has(unit):
            anew.append(unit[0])
            samples.latents.save(unit, latents_of(unit))
        if not store.is_done(unit):
            images = zip(unit, images_of(unit), strict=True)
            store.write(unit, [[GeneratedImage(index, {IMAGE: image}) for index, image in images]])
    if units == slice(None):
        store.finish([f"class {index}" for index in range(samples.config.count)])
        store.show(Image.new("RGB", (2, 2)))
    return anew


def names(samples: Samples) -> set[str]:
    return {path.name for path in samples.store.folder.iterdir()} - {"inputs.json", "metadata.jsonl", "grid.png"}


def pngs(count: int) -> set[str]:
    return {f"{index:06d}.png" for index in range(count)}


def shards(*firsts: int) -> set[str]:
    return {f"latents-{first:06d}.safetensors" for first in firsts}


SHARDS = shards(0, 4, 8)


def npz(samples: Samples) -> np.ndarray:
    with np.load(samples.store.folder / "images.npz") as archive:
        return archive["arr_0"]


@pytest.mark.parametrize("png", [True, False])
def test_all_forms_and_latents_stand_side_by_side(tmp_path: Path, pair: Path, png: bool) -> None:
    samples = samples_of(tmp_path, pair, png=png, npz=True)
    assert samples.store.folder == tmp_path / "run" / "samples"
    assert complete(samples) == [0, 4, 8]
    assert names(samples) == SHARDS | {"images.npz"} | (pngs(10) if png else set())
    np.testing.assert_array_equal(npz(samples), images_of(range(10)).permute(0, 2, 3, 1).numpy())
    rows = (samples.store.folder / "metadata.jsonl").read_text().splitlines()
    assert json.loads(rows[3]) == {**({"file_name": "000003.png"} if png else {}), "text": "class 3"}


def test_neither_form_leaves_latents_alone(tmp_path: Path, pair: Path) -> None:
    samples = samples_of(tmp_path, pair, png=False)
    complete(samples)
    assert names(samples) == SHARDS


def test_an_interrupted_run_goes_on_at_the_batch(tmp_path: Path, pair: Path) -> None:
    assert complete(samples_of(tmp_path, pair), slice(0, 2)) == [0, 4]
    folder = tmp_path / "run" / "samples"
    (folder / "000005.png").unlink()  # stopped between latents and images: decoded, not drawn again
    with pytest.raises(ValueError, match="holds 8 of 10 samples"):
        samples_of(tmp_path, pair).require_all()
    samples = samples_of(tmp_path, pair)
    assert complete(samples) == [8]
    samples.require_all()
    assert names(samples) == SHARDS | pngs(10)


@pytest.mark.parametrize(
    ("change", "anew", "left"),
    [
        ({"npz": True}, [], SHARDS | pngs(10) | {"images.npz"}),
        ({"npz": True, "png": False}, [], SHARDS | {"images.npz"}),
        ({"png": False}, [], SHARDS),
        ({"count": 12}, [8], SHARDS | pngs(12)),
        ({"count": 17}, [8, 12, 16], pngs(17) | shards(0, 4, 8, 12, 16)),
        ({"count": 8}, [], pngs(8) | shards(0, 4)),
        ({"count": 5}, [4], pngs(5) | shards(0, 4)),
        ({"steps": 7}, [0, 4, 8], SHARDS | pngs(10)),
        ({"seed": 1}, [0, 4, 8], SHARDS | pngs(10)),
        ({"labels": "random"}, [0, 4, 8], SHARDS | pngs(10)),
        ({"batch_size": 8}, [0, 8], shards(0, 8) | pngs(10)),
    ],
)
def test_only_what_other_settings_drew_is_drawn_again(
    tmp_path: Path, pair: Path, change: dict[str, Any], anew: list[int], left: set[str]
) -> None:
    complete(samples_of(tmp_path, pair))
    samples = samples_of(tmp_path, pair, **change)
    with pytest.raises(ValueError, match="does not hold samples of these settings"):
        samples.require_all()
    assert complete(samples) == anew
    assert names(samples) == left
    samples.require_all()
    count = samples.config.count
    torch.testing.assert_close(
        torch.cat(list(samples.latents.first(count))), latents_of(range(count)), rtol=1e-3, atol=0
    )
    if samples.config.npz:
        np.testing.assert_array_equal(npz(samples), images_of(range(count)).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("change", [{"npz": True}, {"count": 12}, {"count": 8}])
def test_images_that_stay_the_same_are_not_decoded_again(tmp_path: Path, pair: Path, change: dict[str, Any]) -> None:
    complete(samples_of(tmp_path, pair))
    folder = tmp_path / "run" / "samples"
    stamps = {name: (folder / name).stat().st_mtime_ns for name in pngs(8)}
    complete(samples_of(tmp_path, pair, **change))
    assert {name: (folder / name).stat().st_mtime_ns for name in pngs(8)} == stamps


def test_another_pipeline_draws_everything_again(tmp_path: Path, pair: Path, other_pair: Path) -> None:
    complete(samples_of(tmp_path, pair))
    samples = samples_of(tmp_path, other_pair)
    with pytest.raises(ValueError, match="does not hold samples of these settings"):
        samples.require_all()
    samples.prepare()
    assert names(samples) == set()
    assert not (samples.store.folder / "grid.png").exists()
    assert complete(samples) == [0, 4, 8]


def test_a_changed_setting_takes_the_grid_with_it(tmp_path: Path, pair: Path) -> None:
    """The grid says that the stage is done."""
    complete(samples_of(tmp_path, pair))
    for settings, is_kept in (({}, True), ({"count": 9}, False)):
        samples = samples_of(tmp_path, pair, **settings)
        samples.prepare()
        assert (samples.store.folder / "grid.png").exists() == is_kept


def test_a_changed_count_makes_the_npz_anew(tmp_path: Path, pair: Path) -> None:
    complete(samples_of(tmp_path, pair, npz=True))
    fewer = samples_of(tmp_path, pair, npz=True, count=8)  # no batch is missing
    complete(fewer)
    assert len(npz(fewer)) == 8


def test_a_stop_while_old_samples_are_dropped_drops_the_others_next_time(
    tmp_path: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(samples_of(tmp_path, pair))
    samples = samples_of(tmp_path, pair, steps=7)
    with monkeypatch.context() as patch:
        patch.setattr(samples.store, "begin", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            samples.prepare()
    with pytest.raises(ValueError, match="does not hold samples of these settings"):
        samples_of(tmp_path, pair, steps=7).require_all()
    assert complete(samples_of(tmp_path, pair, steps=7)) == [0, 4, 8]


def written_before(folder: Path, pair: Path, **settings: Any) -> None:
    """samples/ as an earlier version left it that was interrupted in the third of three batches."""
    sample = {
        "steps": 50,
        "guidance_scale": 1.0,
        "guidance_interval": [0.0, 1.0],
        "guidance_channels": None,
        "seed": 0,
        "precision": "fp32",
        "count": 10,
        "batch_size": 4,
        "prompts": None,
        "labels": "balanced",
        "png": True,
        "npz": False,
    }
    inputs = {"sample": sample | settings, "pipeline": folder_hash(pair)}
    folder.mkdir(parents=True)
    (folder / "inputs.json").write_text(json.dumps(inputs, sort_keys=True))
    for first in (0, 4):
        unit = range(first, first + 4)
        save_file({"latent": latents_of(unit).half().contiguous()}, folder / f"latents-{first:06d}.safetensors")
        pixels = images_of(unit).permute(0, 2, 3, 1).contiguous()
        if inputs["sample"]["png"]:
            for index, image in zip(unit, pixels.numpy(), strict=True):
                Image.fromarray(image).save(folder / f"{index:06d}.png")
        else:
            save_file({"image": pixels}, folder / f"images-{first:06d}.safetensors")


@pytest.mark.parametrize("settings", [{}, {"npz": True}, {"npz": True, "png": False}])
def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path, pair: Path, settings: dict[str, Any]) -> None:
    folder = tmp_path / "run" / "samples"
    written_before(folder, pair, **settings)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "inputs.json"}
    samples = samples_of(tmp_path, pair, **settings)
    assert samples.store.stored_inputs == samples.store.inputs
    samples.prepare()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [list(unit) for unit in samples.store.missing()] == [[8, 9]]
    assert complete(samples) == [8]
    samples.require_all()
    if samples.config.npz:
        np.testing.assert_array_equal(npz(samples), images_of(range(10)).permute(0, 2, 3, 1).numpy())
    if samples.config.png:
        assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
        assert torch.equal(samples.store.read(range(10)), images_of(range(10)))
    torch.testing.assert_close(torch.cat(list(samples.latents.first(10))), latents_of(range(10)), rtol=1e-3, atol=0)


def test_a_folder_of_an_earlier_version_keeps_what_other_forms_need(tmp_path: Path, pair: Path) -> None:
    written_before(tmp_path / "run" / "samples", pair)
    samples = samples_of(tmp_path, pair, npz=True, count=6)
    assert complete(samples) == [4]  # its shard has other rows now
    assert names(samples) == shards(0, 4) | pngs(6) | {"images.npz"}
