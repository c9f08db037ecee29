"""DINOv2 and CLIP as feature spaces, on tiny random models: what goes in, what comes out, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

from davae.evaluate.spaces import clip, dinov2
from davae.evaluate.spaces.space import Loading
from davae.models.clip import Clip
from tiny_judges import build_tiny_clip

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(Dinov2Config(image_size=56, mlp_ratio=2, **SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(image_size=42, intermediate_size=32, projection_dim=8, **SMALL)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_dinov2_gives_the_class_token_of_the_squashed_image(dinov2_folder: Path) -> None:
    space, wide = dinov2.load(Loading(str(dinov2_folder))), image(40, 90)
    squashed = np.asarray(Image.fromarray(wide).resize((224, 224), Image.Resampling.BICUBIC)) / 255
    want = (squashed - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = space.prepare(wide)
    assert got.dtype == np.float32 and np.abs(got - want.transpose(2, 0, 1)).max() < 1e-5
    with torch.inference_mode():
        inputs = torch.from_numpy(got)[None]
        vector = space.compute(inputs)["class"]
        assert torch.equal(vector, space.network(inputs).last_hidden_state[:, 0])
    assert vector.shape == (1, space.lengths["class"]) == (1, 16)


def test_clip_gives_unit_embeddings_of_the_centre_square(clip_folder: Path) -> None:
    space, wide = clip.load(Loading(str(clip_folder))), image(40, 90)
    got = space.prepare(wide)
    assert got.shape == (3, 42, 42)
    assert np.array_equal(got, space.prepare(wide[:, 25:65]))
    with torch.inference_mode():
        vector = space.compute(torch.from_numpy(got)[None])["image"]
    assert vector.shape == (1, space.lengths["image"]) == (1, 8)
    assert vector.norm().item() == pytest.approx(1, abs=1e-6)


def test_a_space_is_known_by_its_weights_wherever_they_lie(dinov2_folder: Path, tmp_path: Path) -> None:
    model = Dinov2Model.from_pretrained(dinov2_folder)
    model.save_pretrained(tmp_path / "copy")
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path / "other")
    first, copy, other = (
        dinov2.load(Loading(str(path))).identity for path in (dinov2_folder, tmp_path / "copy", tmp_path / "other")
    )
    assert first == copy
    assert first["weights"] != other["weights"]


@pytest.mark.parametrize("load", [dinov2.load, clip.load])
def test_without_weights_the_message_says_how_to_come_by_them(load, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"Give --weights .*= a folder .*--download"):
        load(Loading())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(Loading("/nowhere"))


def test_a_whole_clip_gives_its_images_half_as_the_clip_score_takes_it(tmp_path: Path) -> None:
    folder, square = str(build_tiny_clip(tmp_path)), image(40, 40)
    space, whole = clip.load(Loading(folder)), Clip.from_pretrained(folder)
    with torch.inference_mode():
        ours = space.compute(torch.from_numpy(space.prepare(square))[None])["image"]
    theirs = torch.nn.functional.normalize(whole.images([Image.fromarray(square)]), dim=1)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_model_of_another_kind_is_refused(clip_folder: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError)):
        dinov2.load(Loading(str(clip_folder)))
