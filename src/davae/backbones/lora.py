"""LoRA on a widened transformer: made for training, merged, saved, loaded. Its heads are trained in full beside it.

A saved adapter is a folder of two files: `pytorch_lora_weights.safetensors` in diffusers' own layout, which stock
pipelines load, and `widened_heads.safetensors` with the patch embedder and output head. They are apart because
diffusers refuses a LoRA file that holds anything else.
"""

import json
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from davae.backbones.base import Backbone
from davae.backbones.registry import backbone_of
from davae.core.config import Config
from davae.models.autoencoder import AutoencoderDA

LORA_FILE: str = LORA_WEIGHT_NAME_SAFE
HEADS_FILE = "widened_heads.safetensors"
_FORMAT = "1"
_PREFIX = "transformer."  # of a transformer's keys in a LoRA file of diffusers


@dataclass(frozen=True, kw_only=True)
class LoraSettings(Config):
    """LoRA (peft) on the family's targets; patch embedder and output head are trained in full beside it."""

    rank: int = 256
    alpha: float | None = None
    """null takes the rank."""
    targets: tuple[str, ...] | None = None
    """Ends of module paths, for example to_q; null takes the family's own."""
    frozen_precision: Literal["fp32", "bf16"] = "fp32"
    """What is not trained is held in this precision; trained weights are always fp32. bf16 halves the memory of the
    frozen layers and needs training under bf16 autocast."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1; got {self.rank}")


def prepare_lora(transformer: Any, settings: LoraSettings, seed: int) -> Any:
    """Freeze a transformer, inject LoRA on its targets, and free its patch embedder and output head.

    Works on families without `add_adapter` too; the heads are named by exact path, because peft's
    `modules_to_save` would match deeper layers of the same name.

    Raises:
        ValueError: a target is the end of no layer's path.
    """
    backbone = backbone_of(transformer)
    transformer.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        init_lora_weights="gaussian",
        target_modules=_target_paths(backbone, transformer, settings),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, transformer)
    for path in backbone.heads:
        transformer.get_submodule(path).requires_grad_(True)
    if settings.frozen_precision == "bf16":
        _round_frozen_layers(transformer)
    return transformer


def _target_paths(backbone: Backbone, transformer: Any, settings: LoraSettings) -> list[str]:
    """Exact paths of the layers to adapt, never the heads."""
    ends = settings.targets or backbone.lora_targets
    for end in ends:
        if not replace(backbone, lora_targets=(end,)).lora_modules(transformer):
            raise ValueError(
                f"LoRA target {end!r} is the end of no layer's path in the {backbone.class_name}. Take linear or "
                f"convolution layers other than the heads; by default: {', '.join(backbone.lora_targets)}."
            )
    return replace(backbone, lora_targets=tuple(ends)).lora_modules(transformer)


def _round_frozen_layers(transformer: Any) -> None:
    """Linear, convolution and embedding layers that are not trained, in bf16.

    Norms, position tables and buffers are small and stay: autocast computes with them in fp32.
    """
    kept = set(transformer._keep_in_fp32_modules or ())
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding) or kept & set(path.split(".")):
            continue
        if not any(weight.requires_grad for weight in module.parameters(recurse=False)):
            module.to(torch.bfloat16)


def merge_lora(transformer: Any) -> Any:
    """The same model as a plain one: adapters are folded into the weights and their modules removed.

    A frozen weight in bf16 stays so, and the sum is rounded to it.
    """
    for name, module in list(transformer.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent = transformer.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    vars(transformer).pop("peft_config", None)  # peft leaves it on every model that it was injected into
    return transformer


def save_adapter(transformer: Any, folder: str | Path, detail_channels: int) -> None:
    """Write what was trained of a transformer from `prepare_lora`, as fp32: LoRA and heads.

    A reader sees an old file or a new one, never half of one. Other files in the folder stay.

    Args:
        transformer: with its adapters, not merged.
        folder: is made where it does not exist.
        detail_channels: D, by which the transformer was widened.

    Raises:
        ValueError: there are no adapters.
    """
    if not _is_adapted(transformer):
        raise ValueError(
            f"There is no LoRA to save on this {type(transformer).__name__}: prepare_lora was not called, or it was "
            f"merged. Save the whole model with save_pretrained."
        )
    lora = {f"{_PREFIX}{key}": _stored(value) for key, value in get_peft_model_state_dict(transformer).items()}
    settings = {f"{_PREFIX}{key}": value for key, value in _lora_settings(transformer).items()}
    packed = json.dumps(settings, indent=2, sort_keys=True)
    heads = {key: _stored(value) for key, value in _heads(transformer).items()}
    folder = Path(folder).absolute()
    temporary = folder.with_name(f".{folder.name}.adapter")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(lora, temporary / LORA_FILE, {"format": "pt", LORA_ADAPTER_METADATA_KEY: packed})
        save_file(heads, temporary / HEADS_FILE, _description(transformer, detail_channels))
        folder.mkdir(parents=True, exist_ok=True)
        for name in (HEADS_FILE, LORA_FILE):
            (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_adapter(transformer: Any, folder: str | Path, merge: bool = True) -> Any:
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
    heads, (lora, metadata) = _read_heads(transformer, folder), _read_lora(transformer, folder)
    packed = metadata.get(LORA_ADAPTER_METADATA_KEY)
    if packed is None:
        raise ValueError(
            f"{folder / LORA_FILE} does not say its rank and alpha (metadata {LORA_ADAPTER_METADATA_KEY}). Take "
            f"the file that the training saved."
        )
    settings = {key.removeprefix(_PREFIX): value for key, value in json.loads(packed).items()}
    if not _is_adapted(transformer):
        inject_adapter_in_model(LoraConfig(**settings), transformer)
    elif (own := _lora_settings(transformer)) != settings:
        different = [
            f"{key} {_short(settings.get(key))}, allowed {_short(value)}"
            for key, value in own.items()
            if settings.get(key) != value
        ]
        raise ValueError(
            f"The LoRA in {folder} is not the one that this {type(transformer).__name__} has: got "
            f"{'; '.join(different)}. Use the settings that it was trained with, or load it into a plain model."
        )
    _set_heads(transformer, heads)
    set_peft_model_state_dict(transformer, lora)
    return merge_lora(transformer) if merge else transformer


def load_finetuned(pipe: Any, folder: str | Path, autoencoder: str | Path | None = None, merge: bool = False) -> Any:
    """Turn an upgraded stock pipeline into the fine-tuned one: `load_finetuned(davae.upgrade(pipe), "runs/NAME")`.

    LoRA is loaded by the pipeline itself where it can, so that its scale, `set_adapters`, `fuse_lora` and
    `unload_lora_weights` work; the heads stay.

    Args:
        pipe: made by `davae.upgrade`, on the scale and the detail channels of the fine-tuned one. It is changed
            and returned. Offload or compile it afterwards.
        folder: a run, or the folder of an adapter.
        autoencoder: folder of the trained `AutoencoderDA`. None takes the run's own, and leaves the pipeline's
            where there is none.
        merge: fold LoRA into the weights. Pipelines that cannot load LoRA always do.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the pipeline is not upgraded, or the parts do not fit it.
    """
    if not isinstance(pipe.vae, AutoencoderDA):
        raise ValueError(
            f"Fine-tuned parts belong into an upgraded pipeline; got a {type(pipe).__name__} with a "
            f"{type(pipe.vae).__name__}. Call davae.upgrade(pipe) first."
        )
    folder = Path(folder)
    adapter = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if autoencoder is None and (folder / "tokenizer").is_dir():
        autoencoder = folder / "tokenizer"
    if autoencoder is not None:
        _take_autoencoder(pipe, Path(autoencoder))
    loads_lora = isinstance(pipe, LoraBaseMixin)
    if merge or not loads_lora:
        load_adapter(pipe.transformer, adapter)
        return pipe
    heads, _ = _read_heads(pipe.transformer, adapter), _read_lora(pipe.transformer, adapter)
    _set_heads(pipe.transformer, heads)
    pipe.load_lora_weights(adapter, weight_name=LORA_FILE)
    return pipe


def _take_autoencoder(pipe: Any, path: Path) -> None:
    trained, own = AutoencoderDA.from_pretrained(path), pipe.vae
    if (trained.layout, trained.compression) != (own.layout, own.compression):
        raise ValueError(
            f"The autoencoder in {path} does not fit the pipeline: got {trained.layout}, compression "
            f"{trained.compression}; the pipeline has {own.layout}, compression {own.compression}. Upgrade with "
            f"scale={trained.config.scale}, detail_channels={trained.layout.detail_channels}."
        )
    pipe.register_modules(vae=trained.to(own.device, own.dtype).eval())


def _read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {name} in {folder}. A LoRA fine-tuning leaves {LORA_FILE} and {HEADS_FILE} in "
            f"transformer/ of its run; a training of every weight leaves a whole model there, for from_pretrained."
        )
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)


def _read_heads(transformer: Any, folder: Path) -> dict[str, Tensor]:
    """The trained patch embedder and output head; refused where they are of another class or width."""
    path = folder / HEADS_FILE
    tensors, found = _read(folder, HEADS_FILE)
    if found.get("format_version") != _FORMAT:
        raise ValueError(
            f"{path} is of another version: got format {found.get('format_version')}, allowed {_FORMAT}. "
            f"Load it with davae {found.get('davae_version', 'of the time it was written')}."
        )
    if found["class_name"] != type(transformer).__name__:
        raise ValueError(
            f"The heads in {path} are of a {found['class_name']}; got a {type(transformer).__name__}. Load them into "
            f"the model that was fine-tuned."
        )
    base, detail = int(found["base_channels"]), int(found["detail_channels"])
    channels = backbone_of(transformer).latent_channels(transformer.config)
    if channels != base + detail:
        raise ValueError(
            f"The heads in {path} are for {base + detail} latent channels ({base} base + {detail} detail); the "
            f"transformer takes {channels}. Upgrade the pretrained pipeline with detail_channels={detail} first."
        )
    own = _heads(transformer)
    if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in tensors.items()}:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise ValueError(
            f"The heads in {path} are of a {found['class_name']} of another size: got {shapes}; allowed "
            f"{', '.join(f'{key} {tuple(value.shape)}' for key, value in own.items())}. Load them into the model "
            f"that was fine-tuned."
        )
    return tensors


def _set_heads(transformer: Any, heads: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for key, value in _heads(transformer).items():
            value.copy_(heads[key])


def _read_lora(transformer: Any, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """LoRA without its prefix, and the file's metadata; refused where the transformer's layers are others."""
    stored, metadata = _read(folder, LORA_FILE)
    lora = {key.removeprefix(_PREFIX): value for key, value in stored.items()}
    layers, wrong = dict(transformer.named_modules()), []
    for key, value in lora.items():
        name, side = key.removesuffix(".weight").rsplit(".", 1)
        axis = 0 if side == "lora_B" else 1
        if name not in layers or layers[name].weight.shape[axis] != value.shape[axis]:
            has = tuple(layers[name].weight.shape) if name in layers else "no such layer"
            wrong.append(f"{key} {tuple(value.shape)} (the transformer has {has})")
    if wrong:
        raise ValueError(
            f"The LoRA in {folder} does not fit this {type(transformer).__name__}: {len(wrong)} of {len(lora)} "
            f"weights, for example {wrong[0]}. Load it into the model that was fine-tuned."
        )
    return lora, metadata


def _heads(transformer: Any) -> dict[str, Tensor]:
    """Weights of patch embedder and output head by their names in the transformer."""
    return {
        f"{path}.{key}": value
        for path in backbone_of(transformer).heads
        for key, value in transformer.get_submodule(path).state_dict().items()
    }


def _description(transformer: Any, detail_channels: int) -> dict[str, str]:
    channels = backbone_of(transformer).latent_channels(transformer.config)
    return {
        "format": "pt",
        "format_version": _FORMAT,
        "class_name": type(transformer).__name__,
        "base_channels": str(channels - detail_channels),
        "detail_channels": str(detail_channels),
        "davae_version": version("davae"),
    }


def _lora_settings(transformer: Any) -> dict[str, Any]:
    """What is not a default of the LoRA: another version of peft may lack the others, and diffusers passes all on."""
    config = transformer.peft_config["default"]
    return {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(config.target_modules)}


def _short(value: Any) -> str:
    return f"{len(value)} layers" if isinstance(value, list) else str(value)


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32).contiguous()


def _is_adapted(transformer: Any) -> bool:
    return any(isinstance(module, BaseTunerLayer) for module in transformer.modules())
