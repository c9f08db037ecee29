"""A saved autoencoder of any known class, by its folder or its name on the hub."""

import importlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError

from davae.models.bases import FAMILIES

STRUCTURED = "AutoencoderDA"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def load_autoencoder(path: str | Path) -> Any:
    """A saved autoencoder in fp32 and eval mode. Only safetensors are read.

    Args:
        path: folder of a saved autoencoder, or of a pipeline (its `vae/` is taken); or "org/name" on the hub, of
            either kind. A folder is taken before the hub is asked.

    Raises:
        FileNotFoundError: there is no autoencoder.
        ValueError: it is of no known class, or its weights are incomplete.
        OSError: its weights cannot be read.
    """
    where = Path(path)
    # A mistyped path is not asked for on the hub as long as its beginning exists.
    if not where.is_dir() and _HUB_NAME.fullmatch(str(path)) and not where.parent.is_dir():
        config, subfolder = _config_on_hub(str(path))
    else:
        config, subfolder = _config_in_folder(where)
    cls = _class_of(config.get("_class_name"), path)
    model, found = cls.from_pretrained(path, subfolder=subfolder, use_safetensors=True, output_loading_info=True)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ValueError(
            f"The weights in {path} are incomplete: {len(missing)} tensors of {cls.__name__} are missing, for example "
            f"{', '.join(missing[:3])}. Save or download it again."
        )
    return model.float().eval()


def _config_in_folder(folder: Path) -> tuple[dict[str, Any], str | None]:
    """(config, sub-folder) of the autoencoder in a folder."""
    subfolder = "vae" if (folder / "vae").is_dir() else None
    file = folder / _file(subfolder)
    if not file.is_file():
        got = "no such folder" if not folder.exists() else "a file" if not folder.is_dir() else "no config.json"
        inside = [f"{folder}/{name}" for name in ("tokenizer", "pipeline") if (folder / name).is_dir()]
        hint = f"Perhaps you mean {' or '.join(inside)}." if inside else "Correct the path."
        raise FileNotFoundError(
            f"There is no autoencoder in {folder}: got {got}, allowed are the folder of a saved autoencoder or "
            f"pipeline, and org/name on the hub. {hint}"
        )
    return _json(file), subfolder


def _config_on_hub(name: str) -> tuple[dict[str, Any], str | None]:
    """(config, sub-folder) of the autoencoder under a name on the hub, or in the hub's cache here."""
    for subfolder in (None, "vae"):
        cached = try_to_load_from_cache(name, _file(subfolder))
        if isinstance(cached, str):
            return _json(Path(cached)), subfolder
    try:
        for subfolder in (None, "vae"):
            with suppress(RemoteEntryNotFoundError):
                return _json(Path(hf_hub_download(name, _file(subfolder)))), subfolder
    except OSError as error:  # no such repository, not allowed in, no network
        raise FileNotFoundError(f"{_nothing(name)} the hub says: {error}") from error
    raise FileNotFoundError(f"{_nothing(name)} the hub has neither config.json nor vae/config.json there.")


def _file(subfolder: str | None) -> str:
    return f"{subfolder}/config.json" if subfolder else "config.json"


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _nothing(name: str) -> str:
    return f"There is no autoencoder {name}: no such folder here, and"


def _class_of(class_name: str | None, path: str | Path) -> Any:
    known = {STRUCTURED: "davae", **{name: family.module for name, family in FAMILIES.items()}}
    if class_name not in known:
        raise ValueError(
            f"Cannot load {path} as an autoencoder: its config.json names {class_name or 'no class'}, known are "
            f"{', '.join(sorted(known))}. Convert it, or add an entry to davae.models.bases."
        )
    return getattr(importlib.import_module(known[class_name]), class_name)
