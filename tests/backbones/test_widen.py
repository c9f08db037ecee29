"""Widened transformers against the reference's checkpoints and branch heads."""

from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

import davae
from conftest import assert_close
from davae.backbones.upgrade import widen_with_report
from davae.models.lightningdit import LightningDiT

SD3_CONFIG: dict[str, Any] = {
    "sample_size": 24,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
EMBEDDERS = {"LightningDiT": "x_embedder.proj", "SD3Transformer2DModel": "pos_embed.proj"}
HEADS = {"LightningDiT": "final_layer.linear", "SD3Transformer2DModel": "proj_out"}


def lightning(patch_size: int = 1) -> LightningDiT:
    model = LightningDiT(4, patch_size, 6, hidden_size=32, num_layers=2, num_attention_heads=2, num_classes=5).eval()
    return with_noise(model)


def sd3() -> SD3Transformer2DModel:
    return with_noise(SD3Transformer2DModel(**SD3_CONFIG).eval())


@torch.no_grad()
def with_noise(model: Any) -> Any:
    """A fresh model predicts zero, which would prove nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


FAMILIES = {"lightningdit": lightning, "lightningdit patch 2": lambda: lightning(2), "sd3": sd3}


@pytest.fixture(params=FAMILIES)
def transformer(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@torch.no_grad()
def predict(model: Any, latent: Tensor) -> Tensor:
    batch = len(latent)
    generator = torch.Generator().manual_seed(7)
    time = torch.rand(batch, generator=generator)
    if isinstance(model, LightningDiT):
        return model(latent, time, torch.arange(batch) % 5).sample
    text = torch.randn(batch, 5, 12, generator=generator)
    pooled = torch.randn(batch, 10, generator=generator)
    return model(latent, text, pooled, 1000 * time).sample


def noisy(model: Any, channels: int, batch: int = 2) -> Tensor:
    height, width = (4, 4) if isinstance(model, LightningDiT) else (8, 12)
    return torch.randn(batch, channels, height, width)


@pytest.mark.parametrize("loudness", [0.0, 1.0, 100.0])
def test_base_prediction_is_the_pretrained_for_any_detail(transformer: Any, loudness: float) -> None:
    base = transformer.config.in_channels
    widened = davae.widen(transformer, detail_channels=10)
    latent = noisy(transformer, base + 10)
    latent[:, base:] *= loudness
    predicted = predict(widened, latent)
    assert_close(predicted[:, :base], predict(transformer, latent[:, :base]), 1e-5)
    assert not predicted[:, base:].any()


@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_every_weight_is_copied_or_widened(transformer: Any, init: Any) -> None:
    name = type(transformer).__name__
    widened, report = widen_with_report(transformer, 10, init)
    assert type(widened) is type(transformer)
    assert widened.config.in_channels == transformer.config.in_channels + 10
    assert sorted(report.widened) == sorted(
        [f"{EMBEDDERS[name]}.weight", f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"]
    )
    assert not report.new
    source, state = transformer.state_dict(), widened.state_dict()
    assert sorted(report.copied + report.widened) == sorted(state)
    for key in report.copied:
        assert torch.equal(state[key], source[key]), key
        assert state[key].data_ptr() != source[key].data_ptr(), key


def test_new_columns_and_rows_are_zero(transformer: Any) -> None:
    name, base = type(transformer).__name__, transformer.config.in_channels
    area = transformer.config.patch_size**2
    source, state = transformer.state_dict(), davae.widen(transformer, detail_channels=10).state_dict()
    key = f"{EMBEDDERS[name]}.weight"
    assert torch.equal(state[key][:, :base], source[key])
    assert not state[key][:, base:].any()
    for key in (f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"):
        rows = state[key].unflatten(0, (area, base + 10))
        assert torch.equal(rows[:, :base], source[key].unflatten(0, (area, base)))
        assert not rows[:, base:].any()


def test_random_detail_speaks_and_listens(transformer: Any) -> None:
    base = transformer.config.in_channels
    widened = davae.widen(transformer, detail_channels=10, init="random", seed=1)
    latent = noisy(transformer, base + 10)
    predicted = predict(widened, latent)
    assert predicted[:, base:].abs().max() > 1e-4
    latent[:, base:] = 0
    assert not torch.equal(predict(widened, latent), predicted)
    again = davae.widen(transformer, detail_channels=10, init="random", seed=1).state_dict()
    assert all(torch.equal(again[key], value) for key, value in widened.state_dict().items())


def test_lightningdit_adapts_as_the_reference(golden) -> None:
    tensors = golden("zero_pad")
    model = LightningDiT(4, 1, 6, hidden_size=32, num_layers=1, num_attention_heads=2, num_classes=10).eval()
    model.load_state_dict({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})
    arguments = tensors["in.x"], tensors["in.t"], tensors["in.y"]
    with torch.no_grad():
        widened = davae.widen(model, detail_channels=18)
        assert_close(widened(*arguments).sample, tensors["out.adapted_forward"])
        assert_close(widened(*arguments).sample[:, :6], tensors["out.base_forward"])
        repeated = davae.widen(model, detail_channels=18, init="repeat")
        assert_close(repeated(*arguments).sample, tensors["out.repeat_average_forward"])
    state = widened.state_dict()
    for key, value in tensors.items():
        if key.startswith("out.adapted."):
            assert torch.equal(state[key.removeprefix("out.adapted.")], value), key


def reference_sd3(tensors: dict[str, Tensor]) -> SD3Transformer2DModel:
    model = SD3Transformer2DModel(**SD3_CONFIG).eval()
    prefix = "weights.plain_transformer."
    model.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if prefix in key})
    return model


def run_sd3(model: SD3Transformer2DModel, tensors: dict[str, Tensor], latent: Tensor) -> Tensor:
    names = ("encoder_hidden_states", "pooled_projections", "timestep")
    with torch.no_grad():
        return model(latent, **{name: tensors[f"in.{name}"] for name in names}).sample


def base_first(latent: Tensor) -> Tensor:
    """The reference keeps [extra | base] here."""
    return torch.cat([latent[:, 4:], latent[:, :4]], dim=1)


def test_sd3_starts_as_the_reference(golden) -> None:
    tensors = golden("sd3_heads")
    model = reference_sd3(tensors)
    latent = base_first(tensors["in.x"])
    assert_close(run_sd3(model, tensors, latent[:, :4]), tensors["out.plain"])
    widened = davae.widen(model, detail_channels=4)
    assert_close(run_sd3(widened, tensors, latent), base_first(tensors["out.wrapper_at_init"]))
    latent[:, 4:] = 50 * torch.randn_like(latent[:, 4:])
    assert_close(run_sd3(widened, tensors, latent)[:, :4], tensors["out.plain"], 1e-5)


def test_sd3_branches_of_the_reference_are_one_wider_layer(golden) -> None:
    tensors = golden("sd3_heads")
    widened = davae.widen(reference_sd3(tensors), detail_channels=4)
    embed, head = "weights.tokenizer_patch_embed", "weights.project_out"
    kernels = [tensors[f"{embed}.proj.{part}_conv.weight"] for part in ("base", "extra")]
    biases = [tensors[f"{embed}.proj.{part}_conv.bias"] for part in ("base", "extra")]
    widened.pos_embed.proj.weight.data = torch.cat(kernels, dim=1)
    widened.pos_embed.proj.bias.data = biases[0] + biases[1]
    widened.pos_embed.pos_embed.data = tensors[f"{embed}.pos_embed"]
    for kind in ("weight", "bias"):
        rows = [tensors[f"{head}.{part}_linear.{kind}"].unflatten(0, (4, 4)) for part in ("base", "extra")]
        getattr(widened.proj_out, kind).data = torch.cat(rows, dim=1).flatten(0, 1)
    got = run_sd3(widened, tensors, base_first(tensors["in.x"]))
    assert_close(got, base_first(tensors["out.wrapper"]))


def test_source_is_left_as_it_was(transformer: Any) -> None:
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    config = dict(transformer.config)
    widened = davae.widen(transformer, detail_channels=2)
    with torch.no_grad():
        for parameter in widened.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
    assert dict(transformer.config) == config


def test_frozen_stays_frozen_and_modes_are_kept(transformer: Any) -> None:
    name = type(transformer).__name__
    transformer.requires_grad_(False)
    transformer.get_submodule(HEADS[name]).requires_grad_(True)
    widened = davae.widen(transformer, detail_channels=2)
    trained = {key for key, parameter in widened.named_parameters() if parameter.requires_grad}
    assert trained == {f"{HEADS[name]}.weight", f"{HEADS[name]}.bias"}
    assert not widened.training
    assert davae.widen(transformer.train(), detail_channels=2).training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_kept(transformer: Any, dtype: torch.dtype) -> None:
    transformer.to(dtype)
    widened = davae.widen(transformer, detail_channels=2)
    kept = {key: value.dtype for key, value in transformer.state_dict().items()}
    assert {key: value.dtype for key, value in widened.state_dict().items()} == kept


@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_device_is_kept(transformer: Any, init: Any) -> None:
    widened = davae.widen(transformer.to("meta"), detail_channels=2, init=init)
    assert {tensor.device.type for tensor in [*widened.parameters(), *widened.buffers()]} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_gpu_gets_the_same_weights(transformer: Any, init: Any) -> None:
    want = davae.widen(transformer, detail_channels=2, init=init).state_dict()
    widened = davae.widen(transformer.to("cuda"), detail_channels=2, init=init)
    assert {tensor.device.type for tensor in [*widened.parameters(), *widened.buffers()]} == {"cuda"}
    assert all(torch.equal(value.cpu(), want[key].cpu()) for key, value in widened.state_dict().items())


def test_defaults_of_the_class_do_not_come_back() -> None:
    # diffusers remembers which arguments nobody gave, and gives them their defaults again.
    defaults = LightningDiT(hidden_size=32, num_layers=1, num_attention_heads=2, num_classes=5)
    assert davae.widen(defaults, detail_channels=4).config.in_channels == 36
    positional = LightningDiT(4, 1, 6, 32, 1, 2)
    widened = davae.widen(positional, detail_channels=4)
    assert (widened.config.sample_size, widened.config.in_channels) == (4, 10)
    assert davae.widen(widened, detail_channels=2).config.in_channels == 12


def test_widened_model_can_be_saved_and_loaded(transformer: Any, tmp_path) -> None:
    widened = davae.widen(transformer, detail_channels=2)
    widened.save_pretrained(tmp_path)
    latent = noisy(transformer, widened.config.in_channels)
    loaded = type(transformer).from_pretrained(tmp_path)
    assert torch.equal(predict(loaded, latent), predict(widened, latent))


def test_unknown_families_and_no_channels_are_explained() -> None:
    stranger = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, cross_attention_dim=16, sample_size=8
    )
    message = "Cannot upgrade a PixArtTransformer2DModel; known transformers: LightningDiT, SD3Transformer2DModel"
    with pytest.raises(ValueError, match=message):
        davae.widen(stranger, detail_channels=4)
    with pytest.raises(ValueError, match="at least one detail channel; got 0"):
        davae.widen(lightning(), detail_channels=0)
    with pytest.raises(ValueError, match="got 'ones'"):
        davae.widen(lightning(), detail_channels=4, init="ones")
