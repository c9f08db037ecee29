"""What was saved, by its folder or its name on the hub: an autoencoder of any known class, parts of a pipeline."""

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import snapshot_download

from davae.models.bases import FAMILIES, STRUCTURED
from davae.models.saved_weights import CONFIG, read_config, readable
from davae.models.saving import verify

_STEMS = ("diffusion_pytorch_model", "model")
_PLAIN = tuple(
    f"{stem}{end}"
    for stem in _STEMS
    for end in (".safetensors", "-?????-of-?????.safetensors", ".safetensors.index.json")
)
_VARIANTS = tuple(f"{stem}*{end}" for stem in _STEMS for end in (".safetensors", ".index.*json"))
_DESCRIPTIONS = ("*.json", "*.txt", "*.model")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def load_autoencoder(path: str | Path) -> Any:
    """A saved autoencoder in fp32 and eval mode. Only safetensors are read.

    Args:
        path: see `autoencoder_folder`.

    Raises:
        FileNotFoundError: there is no autoencoder, or its weights are not there, or not all of them.
        ValueError: it is of no known class, its weights do not fit it or are quantised, or a file is damaged.
    """
    folder = verify(autoencoder_folder(path))
    cls: Any = _class_in(folder, path)
    with readable(folder) as standard, explained(cls, folder):
        model, found = cls.from_pretrained(standard, use_safetensors=True, output_loading_info=True)
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
    with torch.device("meta"), explained(cls, folder):
        return cls.from_config(cls.load_config(folder)).eval()


@contextmanager
def explained(cls: type, folder: Path) -> Iterator[None]:
    """While a model or pipeline is built from a folder: what its configs cannot mean is an error with the folder.

    Raises:
        ValueError: the class does not take the config; or its weights were saved quantised.
    """
    if (folder / CONFIG).is_file() and "quantization_config" in read_config(folder / CONFIG):
        raise ValueError(
            f"Cannot open the {cls.__name__} in {folder}: it was saved quantised, and such weights cannot be "
            f"trained or grown. Take the model in fp32, bf16 or fp16."
        )
    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"Cannot open the {cls.__name__} in {folder}: {type(error).__name__}: {error}. Correct its config, or "
            f"save or download it again."
        ) from error


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
        _fetch_weights(str(path), ["vae/" if folder.name == "vae" else ""], _PLAIN, "autoencoder")
    return folder


def _config_folder(path: str | Path) -> Path:
    """Folder of an autoencoder's config; of one on the hub, the config is fetched."""
    fetched = _fetch(str(path), (CONFIG, f"vae/{CONFIG}")) if _is_hub_name(path) else Path(path)
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
    folder = _fetch(str(source), ["model_index.json"], "pipeline")
    files = (*_DESCRIPTIONS, *_PLAIN)
    return _fetch_weights(str(source), [f"{part}/" for part in parts], files, "pipeline") if parts else folder


def _is_hub_name(path: str | Path) -> bool:
    # A mistyped path is not asked for on the hub as long as its beginning exists.
    return bool(_HUB_NAME.fullmatch(str(path))) and not Path(path).exists() and not Path(path).parent.exists()


def _autoencoder_in(folder: Path, requested: str | Path) -> Path:
    """The folder itself or its vae/, whichever has the config."""
    inside = folder / "vae" if (folder / "vae").is_dir() else folder
    if (inside / CONFIG).is_file():
        return inside
    got = f"no {CONFIG}" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
    runs = [f"{requested}/{name}" for name in ("tokenizer", "pipeline") if (folder / name).is_dir()]
    hint = f"Perhaps you mean {' or '.join(runs)}." if runs else "Correct the path."
    raise FileNotFoundError(
        f"There is no autoencoder in {requested}: got {got}, allowed are the folder of a saved autoencoder or "
        f"pipeline, and org/name on the hub. {hint}"
    )


def _fetch_weights(name: str, folders: Sequence[str], files: Sequence[str], what: str) -> Path:
    """Folder with these files of these folders of a hub repository ("vae/"), where variants lie beside plain weights.

    The variants come only where a folder has no plain weights, and a config.json, which says that it has a model.
    """
    fetched = _fetch(name, [f"{folder}{file}" for folder in folders for file in files], what)
    bare = [
        folder
        for folder in folders
        if (fetched / folder / CONFIG).is_file() and not any((fetched / folder).glob("*.safetensors"))
    ]
    return _fetch(name, [f"{folder}{file}" for folder in bare for file in _VARIANTS], what) if bare else fetched


def _fetch(name: str, patterns: Sequence[str], what: str = "autoencoder") -> Path:
    """Folder with these files of a hub repository, from the hub's cache where they are there."""
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except OSError as error:  # no such repository, not allowed in, no network
        raise FileNotFoundError(
            f"There is no {what} {name}: no such folder here, and the hub says: {error}"
        ) from error


def _class_in(folder: Path, path: str | Path) -> type[ModelMixin]:
    class_name = read_config(folder / CONFIG).get("_class_name")
    known = {STRUCTURED: "davae", **{name: family.module for name, family in FAMILIES.items()}}
    if not isinstance(class_name, str) or class_name not in known:
        raise ValueError(
            f"Cannot load {path} as an autoencoder: its {CONFIG} names {class_name or 'no class'}, known are "
            f"{', '.join(sorted(known))}. Convert it, or add an entry to davae.models.bases."
        )
    return getattr(importlib.import_module(known[class_name]), class_name)
