"""Arguments of the models that section pretrain makes, as a recipe gives them; refused before anything is built."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import diffusers

from davae.models.lightningdit import LIGHTNINGDIT_SIZES, LightningDiT
from davae.recipe import BaseTransformerConfig, PretrainConfig

_DERIVED = ("in_channels", "sample_size", "num_classes")
"""Arguments of a `LightningDiT` that follow from autoencoder and data."""


def lightningdit_arguments(config: BaseTransformerConfig) -> dict[str, Any]:
    """Arguments of `LightningDiT` that the recipe decides: those of `size`, and over them its own."""
    return {**(LIGHTNINGDIT_SIZES[config.size] if config.size is not None else {}), **config.model_config}


def check_arguments(pretrain: PretrainConfig) -> None:
    """Refuse arguments that the models of section pretrain do not take.

    Raises:
        ValueError: there is one; the text names the nearest that there is.
    """
    autoencoder, transformer = pretrain.autoencoder, pretrain.transformer
    if autoencoder is not None:
        _require("pretrain.autoencoder", getattr(diffusers, autoencoder.model), autoencoder.model_config)
    if transformer is not None:
        _require("pretrain.transformer", LightningDiT, transformer.model_config, _DERIVED)


def _require(section: str, model: Any, given: Mapping[str, Any], derived: Sequence[str] = ()) -> None:
    known = [name for name in inspect.signature(model).parameters if name not in derived]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known arguments: {', '.join(known)}"
            raise ValueError(f"{section}.model_config.{key} is nothing to set of {model.__name__}; {hint}")
