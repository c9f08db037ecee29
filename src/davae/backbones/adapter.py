"""What was trained of a transformer beside frozen weights, as files: LoRA, and heads that are trained in full.

A saved adapter is a folder of two files: `pytorch_lora_weights.safetensors` in diffusers' own layout, which stock
pipelines load, and `widened_heads.safetensors` with the patch embedder and output head. They are apart because
diffusers refuses a LoRA file that holds anything else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from davae.backbones.base import config_of
from davae.backbones.lora import Transformer, has_lora, merge_lora
from davae.backbones.registry import backbone_of
from davae.core.files import replacing

LORA_FILE: str = LORA_WEIGHT_NAME_SAFE
HEADS_FILE = "widened_heads.safetensors"
_FORMAT = "1"
_PREFIX = "transformer."  # of a transformer's keys in a LoRA file of diffusers


@dataclass(frozen=True)
class Adapter:
    """A saved adapter that fits the transformer it was read for."""

    heads: Mapping[str, Tensor]
    """Weights of patch embedder and output head by their names in the transformer."""
    lora: Mapping[str, Tensor]
    """Weights of LoRA by peft's names."""
    settings: Mapping[str, Any] | None
    """Rank, alpha and target modules by the arguments of peft's `LoraConfig`; None where the file does not say."""


def save_adapter(transformer: nn.Module, folder: str | Path, detail_channels: int) -> None:
    """Write what was trained of a transformer from `prepare_lora`, as fp32: LoRA and heads.

    A reader sees an old file or a new one, never half of one. Other files in the folder stay.

    Args:
        transformer: with its adapters, not merged.
        folder: is made where it does not exist.
        detail_channels: D, by which the transformer was widened.

    Raises:
        ValueError: there are no adapters.
    """
    if not has_lora(transformer):
        raise ValueError(
            f"There is no LoRA to save on this {type(transformer).__name__}: prepare_lora was not called, or it was "
            f"merged. Save the whole model with save_pretrained."
        )
    lora = {f"{_PREFIX}{key}": _stored(value) for key, value in get_peft_model_state_dict(transformer).items()}
    settings = {f"{_PREFIX}{key}": value for key, value in _settings_of(transformer).items()}
    packed = json.dumps(settings, indent=2, sort_keys=True)
    heads = {key: _stored(value) for key, value in _heads_of(transformer).items()}
    with replacing(Path(folder) / LORA_FILE) as lora_file, replacing(Path(folder) / HEADS_FILE) as heads_file:
        save_file(lora, lora_file, {"format": "pt", LORA_ADAPTER_METADATA_KEY: packed})
        save_file(heads, heads_file, _description(transformer, detail_channels))


def load_adapter(transformer: Transformer, folder: str | Path, merge: bool = True) -> Transformer:
    """Load what `save_adapter` wrote into a widened transformer of any family.

    Args:
        transformer: widened by as many channels as the one that was trained; plain, or from `prepare_lora` with
            the same rank, alpha and targets (to go on training). Its heads are overwritten.
        folder: of the two files.
        merge: fold LoRA into the weights; else it stays attached.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapter is of another class, width or depth, or the transformer has another LoRA.
    """
    folder = Path(folder)
    adapter = read_adapter(transformer, folder)
    if adapter.settings is None:
        raise ValueError(
            f"{folder / LORA_FILE} does not say its rank and alpha (metadata {LORA_ADAPTER_METADATA_KEY}). Take "
            f"the file that the training saved."
        )
    if not has_lora(transformer):
        inject_adapter_in_model(LoraConfig(**adapter.settings), transformer)
    else:
        _expect_settings(transformer, adapter.settings, folder)
    set_heads(transformer, adapter.heads)
    set_peft_model_state_dict(transformer, dict(adapter.lora))
    return merge_lora(transformer) if merge else transformer


def read_adapter(transformer: nn.Module, folder: Path) -> Adapter:
    """The files of an adapter, compared with the transformer that they are for, which is left as it is.

    Args:
        transformer: see `load_adapter`.
        folder: of the two files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapter is of another class, width or depth.
    """
    heads, description = _read(folder, HEADS_FILE)
    _expect_heads(transformer, heads, description, folder / HEADS_FILE)
    stored, metadata = _read(folder, LORA_FILE)
    lora = {key.removeprefix(_PREFIX): value for key, value in stored.items()}
    _expect_layers(transformer, lora, folder)
    packed = metadata.get(LORA_ADAPTER_METADATA_KEY)
    settings = None if packed is None else json.loads(packed)
    if settings is not None:
        settings = {key.removeprefix(_PREFIX): value for key, value in settings.items()}
    return Adapter(heads, lora, settings)


def set_heads(transformer: nn.Module, heads: Mapping[str, Tensor]) -> None:
    """Overwrite patch embedder and output head, in the transformer's dtype and on its device."""
    with torch.no_grad():
        for key, value in _heads_of(transformer).items():
            value.copy_(heads[key])


def _read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {name} in {folder}. A LoRA fine-tuning leaves {LORA_FILE} and {HEADS_FILE} in "
            f"transformer/ of its run; a training of every weight leaves a whole model there, for from_pretrained."
        )
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def _expect_heads(
    transformer: nn.Module, heads: Mapping[str, Tensor], description: Mapping[str, str], path: Path
) -> None:
    """Refuse heads of another class or width."""
    if description.get("format_version") != _FORMAT:
        raise ValueError(
            f"{path} is of another version: got format {description.get('format_version')}, allowed {_FORMAT}. "
            f"Load it with davae {description.get('davae_version', 'of the time it was written')}."
        )
    class_name = description["class_name"]
    if class_name != type(transformer).__name__:
        raise ValueError(
            f"The heads in {path} are of a {class_name}; got a {type(transformer).__name__}. Load them into "
            f"the model that was fine-tuned."
        )
    base, detail = int(description["base_channels"]), int(description["detail_channels"])
    channels = backbone_of(transformer).latent_channels(config_of(transformer))
    if channels != base + detail:
        raise ValueError(
            f"The heads in {path} are for {base + detail} latent channels ({base} base + {detail} detail); the "
            f"transformer takes {channels}. Upgrade the pretrained pipeline with detail_channels={detail} first."
        )
    expected = {key: value.shape for key, value in _heads_of(transformer).items()}
    if expected != {key: value.shape for key, value in heads.items()}:
        raise ValueError(
            f"The heads in {path} are of a {class_name} of another size: got "
            f"{', '.join(f'{key} {tuple(value.shape)}' for key, value in heads.items())}; allowed "
            f"{', '.join(f'{key} {tuple(shape)}' for key, shape in expected.items())}. Load them into the model "
            f"that was fine-tuned."
        )


def _expect_layers(transformer: nn.Module, lora: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse LoRA of layers that the transformer has not, or has in other sizes."""
    layers: dict[str, Any] = dict(transformer.named_modules())
    wrong = []
    for key, value in lora.items():
        name, side = key.removesuffix(".weight").rsplit(".", 1)
        axis = 0 if side == "lora_B" else 1
        if name not in layers or layers[name].weight.shape[axis] != value.shape[axis]:
            found = tuple(layers[name].weight.shape) if name in layers else "no such layer"
            wrong.append(f"{key} {tuple(value.shape)} (the transformer has {found})")
    if wrong:
        raise ValueError(
            f"The LoRA in {folder} does not fit this {type(transformer).__name__}: {len(wrong)} of {len(lora)} "
            f"weights, for example {wrong[0]}. Load it into the model that was fine-tuned."
        )


def _expect_settings(transformer: nn.Module, settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse LoRA of another rank, alpha or targets than the one that is attached."""
    different = [
        f"{key} {_short(settings.get(key))}, allowed {_short(value)}"
        for key, value in _settings_of(transformer).items()
        if settings.get(key) != value
    ]
    if different:
        raise ValueError(
            f"The LoRA in {folder} is not the one that this {type(transformer).__name__} has: got "
            f"{'; '.join(different)}. Use the settings that it was trained with, or load it into a plain model."
        )


def _heads_of(transformer: nn.Module) -> dict[str, Tensor]:
    """Weights of patch embedder and output head by their names in the transformer; they share its memory."""
    return {
        f"{path}.{key}": value
        for path in backbone_of(transformer).heads
        for key, value in transformer.get_submodule(path).state_dict().items()
    }


def _description(transformer: nn.Module, detail_channels: int) -> dict[str, str]:
    channels = backbone_of(transformer).latent_channels(config_of(transformer))
    return {
        "format": "pt",
        "format_version": _FORMAT,
        "class_name": type(transformer).__name__,
        "base_channels": str(channels - detail_channels),
        "detail_channels": str(detail_channels),
        "davae_version": version("davae"),
    }


def _settings_of(transformer: Any) -> dict[str, Any]:
    """What is not a default of the LoRA: another version of peft may lack the others, and diffusers passes all on."""
    config = transformer.peft_config["default"]
    return {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}


def _short(value: object) -> str:
    return f"{len(value)} layers" if isinstance(value, list) else str(value)


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32).contiguous()
