"""Arguments of the models that a recipe makes from scratch: what is none is refused before anything is built."""

from typing import Any

import pytest

from davae.recipe import BaseAutoencoderConfig, BaseTransformerConfig, PretrainConfig
from davae.run.arguments import check_arguments, lightningdit_arguments

TRAINING: dict[str, Any] = {"steps": 1, "batch_size": 1}


@pytest.mark.parametrize(
    ("part", "key", "hint"),
    [
        ("autoencoder", "latent_chanels", "AutoencoderDC; did you mean 'latent_channels'?"),
        ("transformer", "num_layer", "LightningDiT; did you mean 'num_layers'?"),
        ("transformer", "in_channels", "LightningDiT; known arguments: "),  # follows from the autoencoder
    ],
)
def test_the_arguments_of_a_model_are_checked(part: str, key: str, hint: str) -> None:
    given: dict[str, dict[str, Any]] = {"autoencoder": {}, "transformer": {}} | {part: {key: 3}}
    pretrain = PretrainConfig(
        image_size=16,
        autoencoder=BaseAutoencoderConfig(model="AutoencoderDC", model_config=given["autoencoder"], **TRAINING),
        transformer=BaseTransformerConfig(model_config=given["transformer"], **TRAINING),
    )
    with pytest.raises(ValueError, match=r"is nothing to set of") as refused:
        check_arguments(pretrain)
    assert f"pretrain.{part}.model_config.{key} is nothing to set of {hint}" in str(refused.value)


def test_a_size_is_a_geometry_and_may_be_changed() -> None:
    def arguments(**given: Any) -> dict[str, Any]:
        return lightningdit_arguments(BaseTransformerConfig(**TRAINING, **given))

    assert arguments(size="L") == {"hidden_size": 1024, "num_layers": 24, "num_attention_heads": 16}
    assert arguments(size="B", model_config={"patch_size": 2, "num_layers": 3}) == {
        "hidden_size": 768,
        "num_layers": 3,
        "num_attention_heads": 12,
        "patch_size": 2,
    }
    assert arguments() == {}
