"""LPIPS against a plain rewrite, and its strictness about weights (random ones, in the public layout)."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from conftest import assert_close
from davae.models import perceptual, weights
from davae.models.perceptual import LPIPS
from davae.models.weights import LPIPS_LINEAR, VGG16, PublicFile
from davae.run import build
from davae.train.objective import PerceptualConfig

# torchvision's index of every conv, and its channels.
CONVS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}
POOL_BEFORE = (5, 10, 17, 24)
TAP_AFTER = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    for index, (inner, outer) in CONVS.items():
        weight = torch.randn(outer, inner, 3, 3, generator=generator)
        state[f"features.{index}.weight"] = weight * (2 / (9 * inner)) ** 0.5
        state[f"features.{index}.bias"] = 0.1 * torch.randn(outer, generator=generator)
    return state


@pytest.fixture(scope="module")
def linear() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    widths = (64, 128, 256, 512, 512)
    return {
        f"lin{tap}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for tap, width in enumerate(widths)
    }


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple((torch.rand(2, 2, 3, 32, 32, generator=generator) * 2 - 1).unbind(0))


def rewrite(vgg: dict[str, Tensor], linear: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The definition, image by image and tap by tap."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    distances = []
    for pair in zip(x, y, strict=True):
        features = (torch.stack(pair) - shift) / scale
        total, tap = torch.tensor(0.0), 0
        for index in CONVS:
            if index in POOL_BEFORE:
                features = F.max_pool2d(features, 2, 2)
            weight, bias = vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"]
            features = F.conv2d(features, weight, bias, padding=1).relu()
            if index in TAP_AFTER:
                unit = features / (features.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
                squared = (unit[:1] - unit[1:]) ** 2
                total = total + F.conv2d(squared, linear[f"lin{tap}.model.1.weight"]).mean()
                tap += 1
        distances.append(total)
    return torch.stack(distances)


def test_distance_is_the_definition(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    x, y = images()
    got = LPIPS(vgg, linear)(x, y)
    assert got.shape == (2,)
    assert got[0] != got[1]
    assert_close(got, rewrite(vgg, linear, x, y), 1e-4)


def test_equal_images_have_distance_zero_and_gradients_reach_the_image(
    vgg: dict[str, Tensor], linear: dict[str, Tensor]
) -> None:
    loss, (x, y) = LPIPS(vgg, linear), images()
    assert torch.equal(loss(x, x), torch.zeros(2))
    x.requires_grad_()
    loss(x, y).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


def test_dead_features_keep_distance_and_gradient_finite(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    dead = vgg | {"features.28.bias": torch.full((512,), -1e4)}  # relu5_3 is zero everywhere
    x, y = images()
    x.requires_grad_()
    distances = LPIPS(dead, linear)(x, y)
    assert distances.isfinite().all()
    distances.sum().backward()
    assert x.grad.isfinite().all()


def test_autocast_compares_features_in_float32(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    loss, (x, y) = LPIPS(vgg, linear), images()
    with torch.autocast("cpu", torch.bfloat16):
        got = loss(x, y)
    assert got.dtype == torch.float32
    assert_close(got, loss(x, y), 0.05)


def test_is_frozen_and_stays_in_eval_mode(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    holder = torch.nn.Sequential(LPIPS(vgg, linear)).train()
    assert holder.training
    assert not any(module.training for module in holder[0].modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    assert sum(parameter.numel() for parameter in holder.parameters()) == 14_714_688 + 1472


@pytest.fixture
def published(
    tmp_path: Path, vgg: dict[str, Tensor], linear: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[PublicFile, PublicFile]:
    """The two public files, with random weights, at file addresses; no cache has them."""
    monkeypatch.setenv("DAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    files = []
    for real, state in ((VGG16, vgg), (LPIPS_LINEAR, linear)):
        path = tmp_path / real.name
        torch.save(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(replace(real, url=path.as_uri(), sha256=digest, size=path.stat().st_size))
    monkeypatch.setattr(perceptual, "VGG16", files[0])
    monkeypatch.setattr(perceptual, "LPIPS_LINEAR", files[1])
    monkeypatch.setattr(weights, "PUBLIC_FILES", tuple(files))
    return files[0], files[1]


def test_every_way_to_the_weights_gives_the_same_distance(
    tmp_path: Path, vgg: dict[str, Tensor], linear: dict[str, Tensor], published: tuple[PublicFile, PublicFile]
) -> None:
    x, y = images()
    want = LPIPS(vgg, linear)(x, y)
    with pytest.raises(FileNotFoundError, match=r"Cannot load VGG16 .* and linear layers"):
        LPIPS.from_pretrained()
    assert torch.equal(LPIPS.from_pretrained(allow_download=True)(x, y), want)
    assert torch.equal(LPIPS.from_pretrained()(x, y), want)  # from the cache
    save_file(vgg, tmp_path / "vgg16.safetensors")
    renamed = {key.replace("lin", "lins."): value for key, value in linear.items()}
    save_file(renamed, tmp_path / "lin.safetensors")
    for paths in (
        (tmp_path / "vgg16.safetensors", tmp_path / published[1].name),
        (tmp_path / published[0].name, tmp_path / "lin.safetensors"),
    ):
        assert torch.equal(LPIPS.from_pretrained(*paths)(x, y), want)


def test_a_recipe_without_paths_asks_for_the_download(published: tuple[PublicFile, PublicFile]) -> None:
    messages: list[str] = []
    loss = build.perceptual(PerceptualConfig(), torch.device("cpu"), messages.append)
    assert isinstance(loss, LPIPS)
    assert len(messages) == 2
    assert build.perceptual(None, torch.device("cpu"), messages.append) is None


def test_swapped_files_are_explained(
    tmp_path: Path, vgg: dict[str, Tensor], linear: dict[str, Tensor], published: tuple[PublicFile, PublicFile]
) -> None:
    paths = [tmp_path / file.name for file in published]
    with pytest.raises(ValueError, match=r"not the file of the VGG16.*It is the file of the linear layers"):
        LPIPS.from_pretrained(paths[1], paths[1])
    for state in (vgg, linear):
        with pytest.raises(ValueError, match=r"vgg and linear seem to be swapped"):
            LPIPS(state, state)
    with pytest.raises(ValueError, match=r"missing .* \(26 in all\), unknown \[\] \(0 in all\)"):
        LPIPS({}, linear)


def test_other_weights_are_refused(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    without_one = {key: value for key, value in vgg.items() if key != "features.28.bias"}
    with pytest.raises(ValueError, match=r"not the weights of the VGG16 .*: missing \['features.28.bias'\]"):
        LPIPS(without_one, linear)
    with pytest.raises(ValueError, match=r"unknown \['features.1.weight'\]"):  # a VGG with batch norm
        LPIPS(vgg | {"features.1.weight": torch.ones(64)}, linear)
    with pytest.raises(ValueError, match=r"lin2.model.1.weight \(1, 128, 1, 1\) instead of \(1, 256, 1, 1\)"):
        LPIPS(vgg, linear | {"lin2.model.1.weight": torch.ones(1, 128, 1, 1)})
    with pytest.raises(ValueError, match=r"give lin0.model.1.weight twice"):
        LPIPS(vgg, linear | {"lins.0.model.1.weight": torch.ones(1, 64, 1, 1)})


def test_images_of_other_shapes_are_explained(vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
    loss, (x, y) = LPIPS(vgg, linear), images()
    with pytest.raises(ValueError, match=r"got \(2, 3, 32, 32\) and \(1, 3, 32, 32\)"):
        loss(x, y[:1])
    with pytest.raises(ValueError, match="at least 16"):
        loss(x[..., :8], y[..., :8])
