"""What enlarges images: filters, networks in tiles, other programs, and how they are named."""

import shlex
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from davae.core.pixels import enlarge, uint8_to_unit, unit_to_uint8
from davae.models.upscalers.rrdb import RRDBNet
from davae.sampling.upscaling import open_upscaler, refusal
from davae.sampling.upscaling.command import Command
from davae.sampling.upscaling.filters import FILTERS
from davae.sampling.upscaling.network import NetworkUpscaler


def images(height: int = 8, width: int = 12, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def pillow(image: Tensor, size: tuple[int, int], kernel: Image.Resampling) -> Tensor:
    large = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], kernel)
    return torch.from_numpy(np.array(large)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("bilinear", Image.Resampling.BILINEAR),
        ("catmull-rom", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_filters_are_those_of_pillow(name: str, kernel: Image.Resampling) -> None:
    given = images() // 2 + 64  # Pillow rounds and clips between rows and columns
    large = open_upscaler(name)(given, (20, 30))
    expected = torch.stack([pillow(image, (20, 30), kernel) for image in given])
    assert (large.int() - expected.int()).abs().max() <= 1


def test_bicubic_is_the_enlargement_of_the_library() -> None:
    assert torch.equal(
        open_upscaler("bicubic")(images(), (16, 24)), unit_to_uint8(enlarge(uint8_to_unit(images()), (16, 24)))
    )


class Doubling:
    """Nearest neighbour: what a tile makes of a pixel does not depend on the tile."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape[-2:]))
        return F.interpolate(x, scale_factor=2, mode="nearest")


def doubling(**settings: Any) -> tuple[NetworkUpscaler, Doubling]:
    network = Doubling()
    return NetworkUpscaler("x2", network, 2, {}, **settings), network


def test_a_network_gets_large_images_in_tiles_and_makes_the_same() -> None:
    upscaler, network = doubling(tile=40)
    given = images(64, 100)
    expected = given.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(upscaler(given, (128, 200)), expected)
    assert max(max(shape) for shape in network.shapes) == 40


def test_a_network_gets_sides_of_its_multiple() -> None:
    upscaler, network = doubling(multiple=4)
    given = images(6, 9)
    assert torch.equal(upscaler(given, (12, 18)), given.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert set(network.shapes) == {(8, 12)}


def test_what_a_network_makes_too_large_is_reduced_with_antialiasing() -> None:
    upscaler, _ = doubling()
    large = uint8_to_unit(images().repeat_interleave(2, 2).repeat_interleave(2, 3))
    expected = F.interpolate(large, size=(12, 18), mode="bicubic", antialias=True)
    assert torch.equal(upscaler(images(), (12, 18)), unit_to_uint8(expected))
    assert "antialiasing" in upscaler.identity["resize"]


def test_a_file_of_weights_by_its_name(tmp_path: Path) -> None:
    network = RRDBNet(1, 4, 2)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    upscaler = open_upscaler(f"esrgan:{tmp_path / 'tiny.safetensors'}", torch.device("cpu"))
    with torch.no_grad():
        expected = unit_to_uint8(network(uint8_to_unit(images())))
    assert torch.equal(upscaler(images(), (32, 48)), expected)
    assert upscaler.scale == 4
    assert upscaler.identity["network"] == "RRDBNet, 1 blocks, 4 features, x4"
    assert len(upscaler.identity["sha256"]["tiny.safetensors"]) == 64
    half = open_upscaler(f"esrgan:{tmp_path / 'tiny.safetensors'}", torch.device("cpu"), torch.bfloat16)
    assert (half(images(), (32, 48)).int() - expected.int()).abs().max() <= 8
    assert half.identity["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bicubi", "Unknown upscaler 'bicubi'.*Did you mean 'bicubic'?"),
        ("esrgan", "Unknown upscaler 'esrgan'; allowed are bilinear"),
        ("esrgan:", "Unknown upscaler"),
        ("bicubic:x", "Unknown upscaler"),
        ("", "Unknown upscaler ''"),
        ("esrgan:nowhere.pth", "There is no file nowhere.pth"),
        ("command:prog --in {input}", "needs a program, {input} and {output}"),
        ("command:prog {input} {output} {seed}", "has {seed}; allowed are {input}, {output}, {size}"),
        ("command:prog '{input} {output}", "cannot be read: No closing quotation"),
    ],
)
def test_what_nobody_can_mean_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        open_upscaler(spec)


def test_sizes_that_make_no_sense_are_refused() -> None:
    network, anything = doubling()[0], FILTERS["bicubic"]
    assert refusal(network, (8, 12), (16, 24)) is None
    assert refusal(network, (8, 12), (12, 18)) is None
    assert refusal(anything, (8, 12), (80, 120)) is None
    assert refusal(network, (8, 12), (17, 24)) == "12x8 is too small: x2 makes 24x16 of it, less than 24x17"
    for want in ((8, 12), (4, 6), (7, 40)):
        assert "nothing to enlarge" in str(refusal(anything, (8, 12), want))


# Other programs

PROGRAM = """
import sys
from pathlib import Path
from PIL import Image
source, target, width, height = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
files = sorted(source.iterdir())
{change}
for file in files:
    Image.open(file).resize((width, height), Image.Resampling.NEAREST).save(target / NAME.format(file.stem))
"""


def program(tmp_path: Path, change: str = "", name: str = "{}.png", timeout: float = 60.0) -> Command:
    """A program that doubles by nearest neighbour; its path has a space and a quote."""
    folder = tmp_path / "o'ne two"
    folder.mkdir(exist_ok=True)
    file = folder / "program.py"
    file.write_text(f"NAME = {name!r}\n" + PROGRAM.replace("{change}", change))
    words = [sys.executable, str(file)]
    return Command(f"{shlex.join(words)} {{input}} {{output}} {{width}} {{height}}", timeout)


def test_another_program_is_given_folders_and_its_images_are_taken(tmp_path: Path) -> None:
    expected = images().repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(program(tmp_path)(images(), (16, 24)), expected)
    webp = program(tmp_path, name="{}.webp")(images(), (16, 24))
    assert webp.shape == expected.shape


def test_nothing_of_a_command_goes_through_a_shell(tmp_path: Path) -> None:
    upscaler = program(tmp_path, 'open(target.parent.parent / "said", "w").write(repr(sys.argv))')
    upscaler = Command(f"{upscaler.template} ';touch' '{tmp_path / 'shell'}' '{{size}} $HOME'", 60)
    change = f"Path({str(tmp_path / 'arguments')!r}).write_text(repr(sys.argv[5:]))"
    program(tmp_path, change)
    upscaler(images(), (16, 24))
    assert (tmp_path / "arguments").read_text() == repr([";touch", str(tmp_path / "shell"), "16 $HOME"])
    assert not (tmp_path / "shell").exists()


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ("files = files[:1]", "{}.png", r"was to write 2 images .* it wrote 1: 1 are missing, the first 000001"),
        ("", "{}_x2.png", r"2 are missing.*2 have other names, the first 000000_x2\.png"),
        ("width += 1", "{}.png", r"wrote 000000\.png as 25x16; asked for was 24x16"),
        ("files = []; (target / '000000.png').write_bytes(b'no'); (target / '000001.png').write_bytes(b'no')",
         "{}.png", "wrote an image that cannot be read: 000000.png: not an image"),
        ("print(1); sys.exit('no weights')", "{}.png", "failed with status 1. It said:\n  1\n  no weights"),
        ("sys.exit(3)", "{}.png", "failed with status 3. It said nothing"),
    ],
)  # fmt: skip
def test_a_program_that_does_not_do_its_work_is_named(tmp_path: Path, change: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(tmp_path, change, name)(images(), (16, 24))


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="Cannot start 'no-such-program': No such file"):
        Command("no-such-program {input} {output}")(images(), (16, 24))


def test_a_program_that_hangs_is_stopped_with_its_children(tmp_path: Path) -> None:
    marker = tmp_path / "alive"
    child = f"import time; time.sleep(1.5); open({str(marker)!r}, 'w')"
    change = f"import subprocess, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(ValueError, match="took longer than 0.6 s and was stopped"):
        program(tmp_path, change, timeout=0.6)(images(), (16, 24))
    assert time.monotonic() - started < 20
    time.sleep(1.3)
    assert not marker.exists()


def test_a_program_ends_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, killed = program(tmp_path, "import time; time.sleep(60)"), []

    def interrupted(process: Any, timeout: float | None = None) -> int:
        if timeout is not None:
            raise KeyboardInterrupt
        return 0

    def kill(group: int, number: int) -> None:
        killed.append(number)
        real(group, number)

    import os

    real = os.killpg
    monkeypatch.setattr("subprocess.Popen.wait", interrupted)
    monkeypatch.setattr("os.killpg", kill)
    with pytest.raises(KeyboardInterrupt):
        upscaler(images(), (16, 24))
    assert killed == [signal.SIGKILL]


# spandrel


def test_spandrel_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davae.sampling.upscaling.foreign.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'pip install spandrel' brings it, and torchvision .* esrgan:x.pth"):
        open_upscaler("spandrel:x.pth")


def test_spandrels_network_gets_our_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package, which would bring torchvision."""
    network = RRDBNet(1, 4, 2)
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")

    class Descriptor(torch.nn.Module):
        architecture = SimpleNamespace(name="ESRGAN")
        input_channels = output_channels = 3
        scale = 4

        def to(self, device: torch.device, dtype: torch.dtype) -> "Descriptor":
            if dtype == torch.float16:
                raise KeyError
            return self

        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 1
            return network(x)

    class Loader:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def load_from_state_dict(self, content: dict[str, Any]) -> Descriptor:
            if "conv_first.weight" not in content["params"]:
                raise KeyError
            return Descriptor()

    spandrel: Any = ModuleType("spandrel")
    spandrel.__version__ = "0"
    spandrel.ModelLoader, spandrel.ImageModelDescriptor = Loader, Descriptor
    spandrel.UnsupportedModelError = spandrel.UnsupportedDtypeError = KeyError
    monkeypatch.setitem(sys.modules, "spandrel", spandrel)
    monkeypatch.setattr("davae.sampling.upscaling.foreign.find_spec", lambda name: object())
    upscaler = open_upscaler(f"spandrel:{tmp_path / 'x.pth'}", torch.device("cpu"))
    ours = NetworkUpscaler("x", network, 4, {})
    assert torch.equal(upscaler(images(), (32, 48)), ours(images(), (32, 48)))
    assert upscaler.identity["network"] == "ESRGAN, x4"
    with pytest.raises(ValueError, match="cannot compute in float16. Take fp32"):
        open_upscaler(f"spandrel:{tmp_path / 'x.pth'}", dtype=torch.float16)
    torch.save({"params": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth holds no network that spandrel 0 knows"):
        open_upscaler(f"spandrel:{tmp_path / 'other.pth'}")
    Descriptor.scale = 1
    with pytest.raises(ValueError, match="of scale 1: it enlarges nothing"):
        open_upscaler(f"spandrel:{tmp_path / 'x.pth'}")
