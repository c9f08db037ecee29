"""What was saved, by its folder or its name on the hub: an autoencoder of any known class, parts of a pipeline."""

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import snapshot_download

from davae.models.bases import FAMILIES, STRUCTURED

_CONFIG = "config.json"
_WEIGHTS = tuple(
    f"diffusion_pytorch_model{end}" for end in (".safetensors", "-*.safetensors", ".safetensors.index.json")
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def load_autoencoder(path: str | Path) -> Any:
    """A saved autoencoder in fp32 and eval mode. Only safetensors are read.

    Args:
        path: see `autoencoder_folder`.

    Raises:
        FileNotFoundError: there is no autoencoder.
        ValueError: it is of no known class, or its weights are incomplete.
        OSError: its weights cannot be read.
    """
    folder = autoencoder_folder(path)
    cls = _class_in(folder, path)
    loaded: Any = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"The weights in {path} are incomplete: {len(missing)} tensors of {cls.__name__} are missing, for "
            f"example {', '.join(missing[:3])}. Save or download it again."
        )
    return model.float().eval()


def autoencoder_outline(path: str | Path) -> Any:
    """A saved autoencoder without weights (on the meta device), from its config alone; nothing else is fetched.

    Raises:
        FileNotFoundError: there is no autoencoder.
        ValueError: it is of no known class.
    """
    folder = _config_folder(path)
    cls: Any = _class_in(folder, path)
    with torch.device("meta"):
        return cls.from_config(cls.load_config(folder)).eval()


def autoencoder_folder(path: str | Path) -> Path:
    """The folder that holds an autoencoder's config and weights; what lies on the hub is fetched.

    Args:
        path: folder of a saved autoencoder, or of a pipeline (its `vae/` is taken); or "org/name" on the hub, of
            either kind. A folder is taken before the hub is asked.

    Raises:
        FileNotFoundError: there is no autoencoder.
        ValueError: it is of no known class.
    """
    folder = _config_folder(path)
    _class_in(folder, path)  # before its weights are fetched
    if _is_hub_name(path):
        _fetch(str(path), [f"vae/{name}" if folder.name == "vae" else name for name in _WEIGHTS])
    return folder


def _config_folder(path: str | Path) -> Path:
    """Folder of an autoencoder's config; of one on the hub, the config is fetched."""
    fetched = _fetch(str(path), (_CONFIG, f"vae/{_CONFIG}")) if _is_hub_name(path) else Path(path)
    return _autoencoder_in(fetched, path)


def pipeline_folder(source: str | Path, parts: Sequence[str] = ()) -> Path:
    """The folder of a saved pipeline; of one on the hub, these parts are fetched (weights as safetensors alone).

    Args:
        source: a folder, or "org/name" on the hub. A folder is taken before the hub is asked.
        parts: components by their names, for example "transformer"; the index is always there.

    Raises:
        FileNotFoundError: the hub has nothing of this name, or cannot be reached.
    """
    if not _is_hub_name(source):
        return Path(source)
    patterns = [f"{part}/{name}" for part in parts for name in ("*.json", "*.txt", "*.model", "*.safetensors")]
    return _fetch(str(source), ["model_index.json", *patterns], "pipeline")


def _is_hub_name(path: str | Path) -> bool:
    # A mistyped path is not asked for on the hub as long as its beginning exists.
    return bool(_HUB_NAME.fullmatch(str(path))) and not Path(path).exists() and not Path(path).parent.exists()


def _autoencoder_in(folder: Path, requested: str | Path) -> Path:
    """The folder itself or its vae/, whichever has the config."""
    inside = folder / "vae" if (folder / "vae").is_dir() else folder
    if (inside / _CONFIG).is_file():
        return inside
    got = f"no {_CONFIG}" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
    runs = [f"{requested}/{name}" for name in ("tokenizer", "pipeline") if (folder / name).is_dir()]
    hint = f"Perhaps you mean {' or '.join(runs)}." if runs else "Correct the path."
    raise FileNotFoundError(
        f"There is no autoencoder in {requested}: got {got}, allowed are the folder of a saved autoencoder or "
        f"pipeline, and org/name on the hub. {hint}"
    )


def _fetch(name: str, patterns: Sequence[str], what: str = "autoencoder") -> Path:
    """Folder with these files of a hub repository, from the hub's cache where they are there."""
    try:
        # Variants in half precision lie beside the weights under names of their own.
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*.fp16*"]))
    except OSError as error:  # no such repository, not allowed in, no network
        raise FileNotFoundError(
            f"There is no {what} {name}: no such folder here, and the hub says: {error}"
        ) from error


def _class_in(folder: Path, path: str | Path) -> type[ModelMixin]:
    class_name = json.loads((folder / _CONFIG).read_text(encoding="utf-8")).get("_class_name")
    known = {STRUCTURED: "davae", **{name: family.module for name, family in FAMILIES.items()}}
    if class_name not in known:
        raise ValueError(
            f"Cannot load {path} as an autoencoder: its {_CONFIG} names {class_name or 'no class'}, known are "
            f"{', '.join(sorted(known))}. Convert it, or add an entry to davae.models.bases."
        )
    return getattr(importlib.import_module(known[class_name]), class_name)
