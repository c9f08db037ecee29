"""Foundation features: whole, in order, frozen, on the latent's grid; what is no foundation model is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from conftest import assert_close
from davae.models.vision_features import FoundationFeatures

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def dinov2(**sizes: int) -> Any:
    config = transformers.Dinov2Config(**{"image_size": 24, "patch_size": 4, "mlp_ratio": 2, **SIZES} | sizes)
    return randomised(transformers.Dinov2Model(config))


def mae(**sizes: int) -> Any:
    config = transformers.ViTMAEConfig(
        **{"image_size": 24, "patch_size": 8, "intermediate_size": 32, **SIZES} | sizes
    )
    return randomised(transformers.ViTMAEModel(config))


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    return model.eval()


@pytest.fixture(params=[dinov2, mae], ids=["dinov2", "mae"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


def trunk(model: Any, hidden: Tensor) -> Tensor:
    """The blocks and the final norm over all of [B, N, K]."""
    for layer in model.layers if hasattr(model, "layers") else model.encoder.layer:
        hidden = layer(hidden)
    return model.layernorm(hidden)


def plain_forward(model: Any, pixels: Tensor, positions: Tensor) -> Tensor:
    """Embed every patch where it is and run the trunk: no masking anywhere."""
    patches = model.embeddings.patch_embeddings(pixels) + positions[:, 1:]
    token = (model.embeddings.cls_token + positions[:, :1]).expand(len(pixels), -1, -1)
    hidden = trunk(model, torch.cat([token, patches], dim=1))[:, 1:]
    side = round(hidden.shape[1] ** 0.5)
    return hidden.transpose(1, 2).reshape(len(pixels), -1, side, side)


@torch.no_grad()
def test_features_are_those_of_all_patches_in_their_places(model: Any) -> None:
    native = 24 // model.config.patch_size
    images = torch.rand(3, 3, 24, 24) * 2 - 1
    want = plain_forward(model, images, model.embeddings.position_embeddings)
    features = FoundationFeatures(model, native)
    got = features(images)
    assert got.shape == (3, 16, native, native)
    assert_close(got, want, 1e-5)
    torch.manual_seed(77)  # MAE draws its mask from the global generator
    assert torch.equal(features(images), got)


@torch.no_grad()
def test_the_image_is_resized_until_patches_are_positions(model: Any) -> None:
    patch, native = model.config.patch_size, 24 // model.config.patch_size
    table = model.embeddings.position_embeddings.clone()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    pixels = F.interpolate(images, size=(4 * patch, 4 * patch), mode="bilinear")
    places = table[0, 1:].T.reshape(1, 16, native, native)
    places = F.interpolate(places, size=(4, 4), mode="bicubic", antialias=True)
    positions = torch.cat([table[:, :1], places.flatten(2).mT], dim=1)
    features = FoundationFeatures(model, 4)
    assert_close(features(images), plain_forward(model, pixels, positions), 1e-5)


@torch.no_grad()
def test_images_are_normalised_only_on_request() -> None:
    images = torch.rand(1, 3, 24, 24) * 2 - 1
    plain, normalised = (FoundationFeatures(dinov2(), 6, normalise) for normalise in (False, True))
    normalised.load_state_dict(plain.state_dict())
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    assert_close(normalised(images), plain(((images + 1) / 2 - mean) / std), 1e-5)


def test_nothing_moves_a_foundation_model(model: Any) -> None:
    model.train()
    features = FoundationFeatures(model, 4)
    parent = nn.ModuleList([features]).train()
    assert not any(module.training for module in features.modules())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert not features(images).requires_grad
    assert not any(weight.requires_grad for weight in parent.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 16, 24), (1, 1, 16, 16), (3, 16, 16)])
def test_images_must_be_square_and_coloured(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"square images; got .* allowed \[B, 3, S, S\]"):
        FoundationFeatures(dinov2(), 4)(torch.zeros(shape))


@torch.no_grad()
def test_a_saved_model_is_loaded(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    loaded = FoundationFeatures.from_pretrained(str(tmp_path), 4)
    assert torch.equal(loaded(images), FoundationFeatures(model, 4)(images))
    assert loaded.channels == 16


@torch.no_grad()
def test_mae_is_loaded_from_its_pretraining_too(tmp_path: Path) -> None:
    whole = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            image_size=16, patch_size=8, intermediate_size=32, decoder_hidden_size=16,
            decoder_num_attention_heads=2, decoder_num_hidden_layers=1, decoder_intermediate_size=16, **SIZES,
        )
    )  # fmt: skip
    whole.save_pretrained(tmp_path)
    images = torch.rand(1, 3, 16, 16)
    loaded = FoundationFeatures.from_pretrained(str(tmp_path), 2)
    assert torch.equal(loaded(images), FoundationFeatures(whole.vit, 2)(images))


@pytest.mark.parametrize("name", ["/nowhere/dinov2", "nowhere", "a/b/c"])
def test_a_missing_model_says_what_to_give(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no foundation model {name}: .*Give the folder .* or its id"):
        FoundationFeatures.from_pretrained(name, 4)


def test_a_folder_without_a_model_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder has no config\.json. Give the folder"):
        FoundationFeatures.from_pretrained(str(tmp_path), 4)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = dinov2()
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"got pytorch_model\.bin, allowed are safetensors"):
        FoundationFeatures.from_pretrained(str(tmp_path), 4)


def test_the_hub_is_asked_only_for_what_looks_like_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(model: str) -> None:
        asked.append(model)
        raise OSError("the hub has no such model\nand more")

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", refuse)
    for name in ("somebody/something", "/nowhere/dinov2"):
        with pytest.raises(FileNotFoundError, match=f"no foundation model {name}: .* Give the folder"):
            FoundationFeatures.from_pretrained(name, 4)
    assert asked == ["somebody/something"]


def test_an_unknown_family_lists_the_known(tmp_path: Path) -> None:
    config = transformers.ViTConfig(image_size=8, patch_size=4, intermediate_size=16, **SIZES)
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'vit'; known: dinov2, vit_mae"):
        FoundationFeatures.from_pretrained(str(tmp_path), 4)


def test_weights_that_are_not_all_there_are_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    del state["layernorm.weight"]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"not complete: got no weights for \['layernorm.weight'\] \(1 in all\)"):
        FoundationFeatures.from_pretrained(str(tmp_path), 4)
