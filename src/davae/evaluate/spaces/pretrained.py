"""Networks of transformers that give features: loaded whole, from a folder or the hub, and known by their weights."""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from davae.core.files import DIGEST_SIZE
from davae.evaluate.spaces.space import Loading


def load_pretrained(class_name: str, public: str, loading: Loading) -> tuple[Any, dict[str, str]]:
    """A model of transformers in float32 and eval mode, and what is known of where it came from.

    Args:
        class_name: of transformers.
        public: its name on the hub, taken where `loading` names no other.
        loading: where from.

    Raises:
        FileNotFoundError: there is no such folder, or the hub's files are not on this machine and may not be fetched.
        ValueError: the model is another one, or not complete.
    """
    name = loading.weights or public
    is_folder = Path(name).is_dir()
    if not is_folder and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(_missing(name, "no such folder, and no OWNER/NAME of the hub", public))
    try:
        model, report = getattr(transformers, class_name).from_pretrained(
            name, dtype=torch.float32, local_files_only=not loading.allow_download, output_loading_info=True
        )
    except OSError as error:
        raise FileNotFoundError(_missing(name, str(error).splitlines()[0].rstrip("."), public)) from error
    if report["missing_keys"] or report.get("mismatched_keys"):  # random features would look right and mean nothing
        lacking = sorted(str(key) for key in report["missing_keys"])
        raise ValueError(
            f"{name} is no complete {class_name}: got no weights for {lacking[:4]} ({len(lacking)} in all). "
            f"Download it again, or give a folder of the kind of {public}."
        )
    model.requires_grad_(False).eval()
    about = {"source": name}
    if commit := getattr(model.config, "_commit_hash", None):
        about["commit"] = commit
    return model, about


def tensors_hash(model: nn.Module) -> str:
    """Hash of a model's weights, the same wherever they came from."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def _missing(name: str, reason: str, public: str) -> str:
    return (
        f"Cannot load {name}: {reason}. Give the folder of a saved transformers model (davae evaluate --weights "
        f"SPACE=FOLDER), or allow the download of {public} (--download)."
    )
