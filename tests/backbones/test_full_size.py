"""The public transformers at their own size, without memory: what widening adds, and what the document says."""

import pytest

from backbones.sizes import MODELS, PAGE, count, with_tables
from davae.backbones.registry import BACKBONES, backbone_of
from davae.backbones.widening import widen_with_report

# Parameters of the public configs, counted once; SD3.5-Medium's position table (226 million numbers) is a buffer.
PARAMETERS = {
    "SD3.5-Medium": 2_243_171_520,
    "FLUX.1-dev": 11_901_408_320,
    "FLUX.2-dev": 32_223_281_152,
    "PixArt-Sigma-XL/2": 610_856_096,
    "Hunyuan-DiT v1.2": 1_499_952_032,
    "SANA-1.6B": 1_604_462_752,
    "DiT-XL/2": 749_826_464,
}


@pytest.mark.parametrize("name", MODELS)
def test_widening_adds_columns_and_rows_only(name: str) -> None:
    model = MODELS[name].build()
    backbone = backbone_of(model)
    assert count(model) == PARAMETERS[name]
    detail = backbone.latent_channels(model.config)
    widened, report = widen_with_report(model, detail)
    assert len(report.copied) + len(report.widened) == len(model.state_dict())
    embedder, head = (model.get_submodule(path) for path in backbone.heads)
    # As many columns and rows again, of the embedder's and head's weights and of the head's bias.
    added = embedder.weight.numel() + count(head)
    assert count(widened) == count(model) + added
    assert {parameter.device.type for parameter in widened.parameters()} == {"meta"}


def test_default_lora_of_sd35_medium_is_the_references() -> None:
    # 37 attentions of 4 layers, 24 feed-forward and 24 AdaLN layers; 245.0 million parameters at rank 256.
    model = MODELS["SD3.5-Medium"].build()
    paths = backbone_of(model).lora_modules(model)
    assert len(paths) == 37 * 4 + 24 + 24 == 196
    layers = [model.get_submodule(path) for path in paths]
    assert round(256 * sum(layer.in_features + layer.out_features for layer in layers) / 1e6, 1) == 245.0


def test_a_quarter_of_the_tokens() -> None:
    for public in MODELS.values():
        model = public.build()
        backbone, f = backbone_of(model), public.compression
        native, after = (backbone.num_tokens(model.config, 1024 // g, 1024 // g) for g in (f, 2 * f))
        assert native == 4 * after
    sd35 = MODELS["SD3.5-Medium"].build()
    assert backbone_of(sd35).num_tokens(sd35.config, 1024 // 16, 1024 // 16) == 32 * 32


def test_document_says_what_the_models_say() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run PYTHONPATH=tests python tests/backbones/sizes.py"
    for name in BACKBONES:
        assert f"`{name}`" in page
