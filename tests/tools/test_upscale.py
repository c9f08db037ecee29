"""`davae upscale`: names and sizes, going on, and input that cannot be used."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from davae.cli import main
from davae.core.observer import Silent
from davae.data.shard_writer import ShardWriter
from davae.sampling.upscaling.filters import FILTERS
from davae.sampling.upscaling.upscaler import Size
from davae.tools.upscale import upscale


class Doubling:
    """Nearest neighbour by 2; counts its calls."""

    name, scale = "x2", 2

    def __init__(self, at_once: int = 2) -> None:
        self.calls: list[tuple[int, ...]] = []
        self._at_once = at_once

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"upscaler": "x2", "sha256": "1"}

    def images_at_once(self, size: Size) -> int:
        return self._at_once

    def __call__(self, images: Tensor, size: Size) -> Tensor:
        self.calls.append(tuple(images.shape))
        return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Listener(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.done: list[int] = []

    def advance(self, done: int, values: Mapping[str, float] | None = None) -> None:
        self.done.append(done)

    def say(self, message: str) -> None:
        self.said.append(message)


def write(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write(folder / "a.png", seed=1)
    write(folder / "deep" / "b.webp", seed=2)
    write(folder / "c.d.bmp", 8, 12, seed=3)
    write(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.png"))}


def test_the_same_names_at_the_size_and_in_the_same_shape(photos: Path, tmp_path: Path) -> None:
    listener, upscaler = Listener(), Doubling(at_once=8)
    out = upscale(photos, tmp_path / "large", 16, upscaler, listener)
    assert sorted(stamps(out)) == ["a.png", "c.d.png", "deep/b.png"]
    small = torch.from_numpy(np.array(Image.open(photos / "a.png")))
    large = torch.from_numpy(np.array(Image.open(out / "a.png")))
    assert torch.equal(large, small.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert Image.open(out / "c.d.png").size == (24, 16)
    assert sorted(upscaler.calls) == [(1, 3, 8, 12), (2, 3, 8, 8)]  # one size a call
    assert listener.done[-1] == 3
    assert re.search(r"x2: [\d.e-]+ s an image", listener.said[-1])
    assert json.loads((out / "upscale.json").read_text())["upscaler"] == {"upscaler": "x2", "sha256": "1"}


def test_it_goes_on_and_makes_anew_what_changed(photos: Path, tmp_path: Path) -> None:
    out = upscale(photos, tmp_path / "large", 16, Doubling())
    before = stamps(out)
    idle = Doubling()
    upscale(photos, out, 16, idle)
    assert not idle.calls and stamps(out) == before
    (out / "a.png").unlink()
    write(photos / "deep" / "b.webp", seed=9)
    write(photos / "e.png", seed=4)
    again = Doubling()
    upscale(photos, out, 16, again)
    assert sum(shape[0] for shape in again.calls) == 3
    assert stamps(out)["c.d.png"] == before["c.d.png"]


def test_a_program_that_fails_leaves_what_was_made(photos: Path, tmp_path: Path) -> None:
    class Failing(Doubling):
        def __call__(self, images: Tensor, size: Size) -> Tensor:
            if self.calls:
                raise ValueError("x2 failed")
            return super().__call__(images, size)

    with pytest.raises(ValueError, match="x2 failed"):
        upscale(photos, tmp_path / "large", 16, Failing(at_once=1))
    assert len(stamps(tmp_path / "large")) == 1
    upscale(photos, tmp_path / "large", 16, Doubling())
    assert len(stamps(tmp_path / "large")) == 3
    assert not list((tmp_path / "large").glob(".*"))


def test_images_that_cannot_be_used_are_counted_and_named_and_the_others_made(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n")
    write(photos / "small.png", 7, 7)
    write(photos / "large.png", 20, 20)
    listener = Listener()
    message = r"3 of 6 images were left out, the first broken\.png: .*large has the others"
    with pytest.raises(ValueError, match=message):
        upscale(photos, tmp_path / "large", 16, Doubling(), listener)
    assert sorted(stamps(tmp_path / "large")) == ["a.png", "c.d.png", "deep/b.png"]
    said = "\n".join(listener.said)
    assert "left out small.png: 7x7 is too small: x2 makes 14x14 of it, less than 16x16" in said
    assert "left out large.png: 20x20 is no smaller than 16x16" in said


def test_a_process_makes_its_share_whatever_others_have_made_by_then(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "large", upscale(photos, tmp_path / "alone", 16, Doubling())
    shares = []
    for process in (0, 1):

        class State:
            """Of a process that starts when the one before is done."""

            process_index, num_processes, is_main_process = process, 2, process == 0

            def __init__(self, **_: Any) -> None:
                pass

            def wait_for_everyone(self) -> None:
                pass

        monkeypatch.setattr("davae.tools.upscale.PartialState", State)
        upscaler = Doubling()
        upscale(photos, out, 16, upscaler)
        shares.append(sum(shape[0] for shape in upscaler.calls))
    assert shares == [2, 1]
    assert stamps(out).keys() == stamps(made).keys()


def test_what_davae_drew_is_enlarged_without_its_grid(tmp_path: Path) -> None:
    write(tmp_path / "drawn" / "000000.png")
    write(tmp_path / "drawn" / "grid.png", 40, 40)
    (tmp_path / "drawn" / "generation.json").write_text("{}")
    out = upscale(tmp_path / "drawn", tmp_path / "large", 16, Doubling())
    assert list(stamps(out)) == ["000000.png"]


def test_shards_and_arrays_are_enlarged_too(tmp_path: Path) -> None:
    png = write(tmp_path / "one" / "a.png").read_bytes()
    with ShardWriter(tmp_path / "shards" / "000000.tar") as shard:
        shard.write("000000007", {"png": png, "baseline.png": png, "txt": "a fox"})
    np.savez(tmp_path / "images.npz", np.zeros((2, 8, 8, 3), np.uint8))
    by_shards = upscale(tmp_path / "shards", tmp_path / "large", 16, Doubling())
    assert list(stamps(by_shards)) == ["000000/000000007.png"]
    assert list(stamps(upscale(tmp_path / "images.npz", tmp_path / "l2", 16, Doubling()))) == [
        *("000000.png", "000001.png"),
    ]


def test_folders_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    out = upscale(photos, tmp_path / "large", 16, Doubling())
    with pytest.raises(
        ValueError, match=r"other settings \(.*upscaler: \"x2\", now \"bicubic\".*Give another folder"
    ):
        upscale(photos, out, 16, FILTERS["bicubic"])
    with pytest.raises(ValueError, match="size: 16, now 12"):
        upscale(photos, out, 12, Doubling())
    (photos / "a.png").unlink()
    with pytest.raises(ValueError, match=r"originals are gone: 1, the first a\.png"):
        upscale(photos, out, 16, Doubling())
    with pytest.raises(ValueError, match="'davae upscale' did not write"):
        upscale(photos, photos.parent, 16, Doubling())
    with pytest.raises(ValueError, match="lies in .*whose images are enlarged"):
        upscale(photos, photos / "large", 16, Doubling())
    with pytest.raises(ValueError, match="there is nothing at .*nowhere"):
        upscale(tmp_path / "nowhere", tmp_path / "x", 16, Doubling())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in .*empty"):
        upscale(tmp_path / "empty", tmp_path / "x", 16, Doubling())
    write(photos / "c.d.png")
    with pytest.raises(ValueError, match=r"would both become c\.d\.png"):
        upscale(photos, tmp_path / "x", 16, Doubling())
    with pytest.raises(ValueError, match="at least 1 px; got 0"):
        upscale(tmp_path / "photos" / "deep", tmp_path / "x", 0, Doubling())
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(os.name != "posix", reason="cp is a program of POSIX")
def test_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "large")
    assert main(["upscale", str(photos), out, "--size", "16", "--with", "lanczos"]) == 0
    assert f"images: {out}" in capsys.readouterr().err
    copied = ["upscale", str(photos), f"{out}2", "--size", "16", "--with", "command:cp -r {input}/. {output}"]
    assert main(copied) == 1
    assert "davae: cp wrote 000000.png as 8x8; asked for was 16x16." in capsys.readouterr().err
    assert main(["upscale", str(photos), f"{out}3", "--size", "16", "--with", "esrgan:nowhere.pth"]) == 1
    assert "There is no file nowhere.pth" in capsys.readouterr().err
    assert not Path(f"{out}3").exists()
