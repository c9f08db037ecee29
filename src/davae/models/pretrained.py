"""Networks of transformers, by folder or by name on the Hugging Face hub: whole, as safetensors, or not at all."""

import re
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel

Network = TypeVar("Network", bound=PreTrainedModel)
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")


def load_network(kind: type[Network], source: str, option: str, allow_download: bool) -> Network:
    """A network in float32 and eval mode.

    Args:
        kind: its class.
        source: folder that transformers saved, or OWNER/NAME.
        option: of the command line that names it, for errors.
        allow_download: whether what is not in the hub's cache may be fetched.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a network of another kind, or its weights are not complete.
    """
    require_place(source, kind.__name__, option)
    local = not allow_download
    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(source, local_files_only=local)
        wanted = cast(Any, kind.config_class).model_type
        part = config.get(cast(Any, kind.config_class).base_config_key)  # half of a CLIP may be taken from the whole
        if config.get("model_type") != wanted and not isinstance(part, dict):
            raise ValueError(
                f"{source} is a network of type {config.get('model_type')!r}; {option} takes type {wanted!r}, "
                f"a {kind.__name__}. Give another."
            )
        loaded: Any = kind.from_pretrained(
            source,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            local_files_only=local,
        )
    except (OSError, SafetensorError) as error:
        raise _absent(source, kind.__name__, option, str(error)) from error
    network, report = cast("tuple[Network, dict[str, Any]]", loaded)
    # A layer that keeps its random start would look right and mean nothing.
    random = sorted({*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])})
    if random:
        raise ValueError(
            f"{source} is not complete: got no weights, or some of another shape, for {', '.join(random[:4])} "
            f"({len(random)} in all). Save it again with {kind.__name__} of transformers."
        )
    return network.requires_grad_(False).eval()


def require_place(source: str, what: str, option: str) -> None:
    """Refuse what is neither the folder of a saved network nor a name on the hub."""
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise _absent(source, what, option, "the folder has no config.json")
    if not Path(source).is_dir() and not _HUB_NAME.fullmatch(source):
        raise _absent(source, what, option, "no such folder, and no OWNER/NAME of the hub")


def _absent(source: str, what: str, option: str, reason: str) -> FileNotFoundError:
    first = reason.strip().splitlines()[0] if reason.strip() else "it cannot be read"
    return FileNotFoundError(
        f"Cannot load a {what} from {source}: {first.rstrip('.')}. Give {option} a folder that transformers saved "
        f"(safetensors), or a name on the Hugging Face hub."
    )
