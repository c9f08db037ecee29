"""The stock pipeline of every family with upgraded parts: the right latent, the right image, the same trajectory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import davae
from backbones.families import PIPELINES, Family
from conftest import assert_close
from davae import AutoencoderDA
from models.families import CHANNELS

DETAIL = 6


@pytest.fixture(params=PIPELINES)
def family(request: pytest.FixtureRequest) -> Family:
    return PIPELINES[request.param]


def upgraded(pipe: Any, **settings: Any) -> Any:
    """Ready to draw."""
    pipe = davae.upgrade(pipe, **({"detail_channels": DETAIL} | settings))
    detail = pipe.vae.layout.detail_channels
    pipe.vae.calibrate(torch.linspace(-1, 1, detail), torch.linspace(0.5, 2, detail))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents_that_reach(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What a pipeline gives its autoencoder, call by call."""
    seen, decode = [], vae.decode

    def look(latent: Tensor, *arguments: Any, **settings: Any) -> Any:
        seen.append(latent)
        return decode(latent, *arguments, **settings)

    monkeypatch.setattr(vae, "decode", look)
    return seen


def same_noise(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first channels of the noise that a pipeline draws are the same at every width."""

    def draw(shape: tuple[int, ...], **_settings: Any) -> Tensor:
        batch, width, *grid = shape
        return torch.randn(batch, 64, *grid, generator=torch.Generator().manual_seed(1))[:, :width]

    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", draw)


def test_stock_pipeline_draws_twice_the_side_on_the_same_grid(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = family.make()
    after = upgraded(pipe)
    assert isinstance(after.vae, AutoencoderDA)
    if type(after) is not type(pipe):
        assert isinstance(after, type(pipe))
        assert type(after).__name__ == "HunyuanDiTPipelineDA"
    same_noise(pipe, monkeypatch)
    small, large = latents_that_reach(pipe.vae, monkeypatch), latents_that_reach(after.vae, monkeypatch)

    picture = family.draw(pipe, upgraded=False)
    assert picture.shape == (1, family.side, family.side, 3)
    enlarged = family.draw(after)
    assert enlarged.shape == (1, 2 * family.side, 2 * family.side, 3)
    assert np.isfinite(enlarged).all()
    assert enlarged.std() > 1e-3

    # Same grid; and the base channels took the pretrained trajectory, whatever the detail was on the way.
    [base], [joint] = small, large
    assert base.shape[1] == CHANNELS
    assert joint.shape == (1, CHANNELS + DETAIL, *base.shape[2:])
    assert base.std() > 0.1
    assert_close(joint[:, :CHANNELS], base, 1e-4)


@pytest.mark.parametrize("name", ["sd3", "pixart", "dit", "hunyuan"])  # the others' is hard-coded, and large
def test_default_size_keeps_the_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = PIPELINES[name]
    after = upgraded(family.make())
    seen = latents_that_reach(after.vae, monkeypatch)
    settings = {"height": None, "width": None} if family.sized else {}
    side = after.transformer.config.sample_size
    assert family.draw(after, **settings).shape == (1, 2 * family.side, 2 * family.side, 3)
    assert seen[0].shape[2:] == (side, side)


@pytest.mark.parametrize("name", [name for name, family in PIPELINES.items() if family.sized])
def test_oblong_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = PIPELINES[name]
    after = upgraded(family.make())
    seen = latents_that_reach(after.vae, monkeypatch)
    height, width = 2 * family.side, 4 * family.side
    assert family.draw(after, height=height, width=width).shape == (1, height, width, 3)
    assert seen[0].shape[2:] == (height // after.vae.compression, width // after.vae.compression)


def test_four_times_the_side(family: Family) -> None:
    after = upgraded(family.make(), scale=4, detail_channels=8)
    side = {"height": 4 * family.side, "width": 4 * family.side} if family.sized else {}
    assert family.draw(after, **side).shape == (1, 4 * family.side, 4 * family.side, 3)


def test_settings_of_the_pipeline_are_kept() -> None:
    dit = davae.upgrade(PIPELINES["dit"].make())
    assert dit.get_label_ids(["tench", "goldfish"]) == [0, 1]
    assert davae.upgrade(PIPELINES["hunyuan"].make()).config.requires_safety_checker is False


def test_resolution_binning_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    davae.upgrade(PIPELINES["pixart"].make())
    assert "Call the upgraded PixArtSigmaPipeline with use_resolution_binning=False" in caplog.text
    caplog.clear()
    davae.upgrade(PIPELINES["sd3"].make())
    assert not caplog.text


def test_hunyuan_refuses_sides_between_tokens() -> None:
    family = PIPELINES["hunyuan"]
    after = upgraded(family.make())
    with pytest.raises(ValueError, match=r"multiples of 32 \(16 x scale 2\); got 144. Use 128"):
        family.draw(after, height=144)


FRESH_PROCESS = """
import sys
sys.modules["torchvision"] = None
import davae
import importlib, json, torch
from pathlib import Path
from safetensors.torch import load_file
for folder in sorted(path for path in Path(sys.argv[1]).iterdir()):
    plan = json.loads((folder / "plan.json").read_text())
    cls = getattr(importlib.import_module(plan["module"]), plan["class"])
    pipe = cls.from_pretrained(folder, **dict.fromkeys(plan["absent"]))
    assert isinstance(pipe.vae, davae.AutoencoderDA), type(pipe.vae)
    assert type(pipe.vae).__module__ == "davae"
    tensors = load_file(folder / "want.safetensors")
    want = tensors.pop("image")
    image = pipe(**tensors, **plan["call"], output_type="np", generator=torch.Generator().manual_seed(3)).images
    torch.testing.assert_close(torch.from_numpy(image), want, rtol=1e-4, atol=1e-4)
    print("drew", folder.name)
"""


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_images(tmp_path: Path) -> None:
    for name, family in PIPELINES.items():
        pipe = upgraded(family.make())
        folder = tmp_path / name
        pipe.save_pretrained(folder)
        image = torch.from_numpy(family.draw(pipe)).contiguous()
        assert image.std() > 1e-3  # not a blank that any model would draw
        side = {"height": 2 * family.side, "width": 2 * family.side} if family.sized else {}
        ours = type(pipe).__name__ == "HunyuanDiTPipelineDA"
        plan = {
            "module": "davae.backbones.hunyuan_pipeline" if ours else "diffusers",
            "class": type(pipe).__name__,
            "absent": [key for key, component in pipe.components.items() if component is None],
            "call": {"num_inference_steps": 2} | side | family.call,
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        save_file({"image": image, **{k: v.clone() for k, v in family.inputs().items()}}, folder / "want.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("drew") == len(PIPELINES)
    assert "will be ignored" not in answer.stderr
