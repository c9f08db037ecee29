"""Widened transformers of every family: what they predict, and what happened to every weight."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableAudioDiTModel
from torch import Tensor

import davae
from backbones.families import FAMILIES, Family
from backbones.transformers import flux_transformer, lightning, pixart_transformer, sd3_transformer
from conftest import assert_close
from davae.backbones.registry import BACKBONES, backbone_of
from davae.backbones.widening import widen_with_report
from davae.models.lightningdit import LightningDiT

DETAIL = 10


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def transformer(family: Family) -> Any:
    return family.transformer()


def channels(family: Family, model: Any) -> int:
    """Latent channels that a model takes."""
    return model.config.in_channels // family.packing


def noisy(family: Family, model: Any, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels(family, model), *family.sizes)


@torch.no_grad()
def predict(family: Family, model: Any, latent: Tensor) -> Tensor:
    """[B, 1 or 2 (variance), K, h, w]."""
    return family.predict(model, latent).unflatten(1, (family.predictions, -1))


def test_every_known_class_is_tried() -> None:
    tried = {type(family.transformer()).__name__ for family in FAMILIES.values()}
    assert tried | {"SD3ControlNetModel"} == set(BACKBONES)


@pytest.mark.parametrize("loudness", [0.0, 1.0, 100.0])
def test_base_prediction_is_the_pretrained_for_any_detail(family: Family, transformer: Any, loudness: float) -> None:
    base = channels(family, transformer)
    widened = davae.widen(transformer, DETAIL)
    latent = noisy(family, widened)
    latent[:, base:] *= loudness
    predicted, want = predict(family, widened, latent), predict(family, transformer, latent[:, :base])
    assert_close(predicted[:, :, :base], want, 1e-5)
    assert want.std() > 0.1
    assert predicted.shape[2] == base + DETAIL
    assert not predicted[:, :, base:].any()


@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_every_weight_is_copied_or_widened(family: Family, transformer: Any, init: Any) -> None:
    widened, report = widen_with_report(transformer, DETAIL, init)
    assert type(widened) is type(transformer)
    source, state = transformer.state_dict(), widened.state_dict()
    touched = [f"{path}.{kind}" for path in (family.head,) for kind in ("weight", "bias")]
    touched += [f"{path}.weight" for path in family.embedders]
    assert sorted(report.widened) == sorted(key for key in touched if key in source)
    assert sorted(report.copied + report.widened) == sorted(state)
    for key in report.copied:
        assert torch.equal(state[key], source[key]), key
        assert state[key].data_ptr() != source[key].data_ptr(), key


def test_a_consumed_source_hands_its_tensors_over(family: Family, transformer: Any) -> None:
    want = davae.widen(transformer, DETAIL).state_dict()
    source = dict(transformer.named_parameters()) | dict(transformer.named_buffers())
    widened, report = widen_with_report(transformer, DETAIL, consume=True)
    state = widened.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in want.items())
    for name, tensor in (*widened.named_parameters(), *widened.named_buffers()):
        assert (tensor.data_ptr() == source[name].data_ptr()) == (name not in report.widened), name
    places = [weight.data_ptr() for weight in widened.parameters()]
    assert len(set(places)) == len(places), "two weights would move together"


def test_new_columns_and_rows_are_zero(family: Family, transformer: Any) -> None:
    taken = transformer.config.in_channels
    source, state = transformer.state_dict(), davae.widen(transformer, DETAIL).state_dict()
    for path in family.embedders:
        key = f"{path}.weight"
        assert state[key].shape[1] == taken + family.packing * DETAIL
        assert torch.equal(state[key][:, :taken], source[key])
        assert not state[key][:, taken:].any()
    for key in (f"{family.head}.weight", f"{family.head}.bias"):
        if key in source:
            rows = state[key].unflatten(0, (family.groups, -1))
            assert rows.shape[1] == taken + family.packing * DETAIL
            assert torch.equal(rows[:, :taken], source[key].unflatten(0, (family.groups, -1)))
            assert not rows[:, taken:].any()


def test_config_says_what_changed_and_no_more(family: Family, transformer: Any) -> None:
    widened = davae.widen(transformer, DETAIL)
    taken = widened.config.in_channels
    assert taken == transformer.config.in_channels + family.packing * DETAIL
    changed = {key for key, value in widened.config.items() if not key.startswith("_")}
    changed = {key for key in changed if widened.config[key] != transformer.config[key]}
    if transformer.config.get("out_channels") is None:
        assert changed == {"in_channels"}
    else:
        assert changed == {"in_channels", "out_channels"}
        assert widened.config.out_channels == family.predictions * taken
    buffers = dict(widened.named_buffers())
    for name, buffer in transformer.named_buffers():
        assert torch.equal(buffers[name], buffer), name


def test_out_channels_of_none_stays_none_and_a_number_grows() -> None:
    assert davae.widen(flux_transformer(), 2).config.out_channels is None
    assert davae.widen(flux_transformer(out_channels=16), 2).config.out_channels == 24
    assert davae.widen(sd3_transformer(out_channels=None), 2).config.out_channels is None
    assert davae.widen(pixart_transformer(out_channels=4), 2).config.out_channels == 6


def test_random_detail_speaks_and_listens(family: Family, transformer: Any) -> None:
    base = channels(family, transformer)
    widened = davae.widen(transformer, DETAIL, init="random", seed=1)
    latent = noisy(family, widened)
    predicted = predict(family, widened, latent)
    assert predicted[:, :, base:].abs().max() > 1e-4
    latent[:, base:] = 0
    assert not torch.equal(predict(family, widened, latent), predicted)
    again = davae.widen(transformer, DETAIL, init="random", seed=1).state_dict()
    assert all(torch.equal(again[key], value) for key, value in widened.state_dict().items())


def test_repeated_detail_hears_and_says_the_base(family: Family, transformer: Any) -> None:
    base = channels(family, transformer)
    widened = davae.widen(transformer, base, init="repeat")
    latent = noisy(family, transformer)
    predicted = predict(family, widened, torch.cat([latent, latent], dim=1))
    assert_close(predicted[:, :, base:], predicted[:, :, :base], 1e-6)
    assert_close(predicted[:, :, :base], predict(family, transformer, latent), 1e-5)


def test_source_is_left_as_it_was(transformer: Any) -> None:
    before = {key: value.clone() for key, value in transformer.state_dict().items()}
    config = dict(transformer.config)
    widened = davae.widen(transformer, detail_channels=2)
    with torch.no_grad():
        for parameter in widened.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in transformer.state_dict().items())
    assert dict(transformer.config) == config


def test_frozen_stays_frozen_and_modes_are_kept(family: Family, transformer: Any) -> None:
    transformer.requires_grad_(False)
    transformer.get_submodule(family.head).requires_grad_(True)
    widened = davae.widen(transformer, detail_channels=2)
    trained = {key for key, parameter in widened.named_parameters() if parameter.requires_grad}
    assert trained == {key for key in widened.state_dict() if key.startswith(f"{family.head}.")}
    assert not widened.training
    assert davae.widen(transformer.train(), detail_channels=2).training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_is_kept(transformer: Any, dtype: torch.dtype) -> None:
    transformer.to(dtype)
    widened = davae.widen(transformer, detail_channels=2)
    for kind in ("named_parameters", "named_buffers"):
        kept = {key: value.dtype for key, value in getattr(transformer, kind)()}
        assert {key: value.dtype for key, value in getattr(widened, kind)()} == kept


@pytest.mark.parametrize("init", ["zero", "random", "repeat"])
def test_device_is_kept(transformer: Any, init: Any) -> None:
    widened, _ = widen_with_report(transformer.to("meta"), 2, init)
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


def test_entries_that_the_class_does_not_know_stay_behind(caplog: pytest.LogCaptureFixture) -> None:
    # PixArt's public configs still have those of the class that it came from.
    transformer = pixart_transformer()
    transformer.register_to_config(only_cross_attention=False)
    assert "only_cross_attention" not in davae.widen(transformer, detail_channels=2).config
    assert not caplog.records


def test_widened_model_can_be_saved_and_loaded(family: Family, transformer: Any, tmp_path: Path) -> None:
    widened = davae.widen(transformer, detail_channels=2)
    widened.save_pretrained(tmp_path)
    latent = noisy(family, widened)
    loaded = type(transformer).from_pretrained(tmp_path)
    assert torch.equal(predict(family, loaded, latent), predict(family, widened, latent))


def test_tokens_follow_patches_and_packing(family: Family, transformer: Any) -> None:
    side = {"SanaTransformer2DModel": 1}.get(type(transformer).__name__, 2)
    if isinstance(transformer, LightningDiT):
        side = transformer.config.patch_size
    backbone = backbone_of(transformer)
    assert backbone.num_tokens(transformer.config, 8, 12) == (8 // side) * (12 // side)
    assert backbone.num_tokens(davae.widen(transformer, 2).config, 8, 12) == (8 // side) * (12 // side)


def test_unknown_families_and_no_channels_are_explained() -> None:
    stranger = StableAudioDiTModel(
        num_layers=1, attention_head_dim=8, num_attention_heads=2, num_key_value_attention_heads=2
    )
    known = ", ".join(sorted(BACKBONES))
    with pytest.raises(ValueError, match=f"Cannot upgrade a StableAudioDiTModel; known transformers: {known}"):
        davae.widen(stranger, detail_channels=4)
    with pytest.raises(ValueError, match="at least one detail channel; got 0"):
        davae.widen(lightning(), detail_channels=0)
    with pytest.raises(ValueError, match="got 'ones'"):
        davae.widen(lightning(), detail_channels=4, init="ones")


def test_models_that_take_more_than_the_latent_are_refused() -> None:
    # FLUX.1 Fill, FLUX.1 Depth, an SD3 for inpainting: [latent, masked latent, mask].
    control = flux_transformer(in_channels=32, out_channels=16)
    with pytest.raises(ValueError, match="Cannot widen this FluxTransformer2DModel.*32 input and 16 predicted"):
        davae.widen(control, detail_channels=4)
    with pytest.raises(ValueError, match="more than the latent"):
        davae.widen(sd3_transformer(in_channels=9, out_channels=4), detail_channels=4)


def test_adapters_in_the_way_are_named() -> None:
    transformer: FluxTransformer2DModel = flux_transformer()
    transformer.encoder_hid_proj = torch.nn.Linear(2, 2)  # as an IP-Adapter leaves it
    with pytest.raises(ValueError, match=r"2 offending keys: encoder_hid_proj.bias.*Unload what was added"):
        davae.widen(transformer, detail_channels=4)
