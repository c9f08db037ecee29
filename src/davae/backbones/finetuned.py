"""`davae.load_finetuned`: what a training left, onto the upgraded stock pipeline; it draws as `davae export` does."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin

from davae.backbones.adapter import LORA_FILE, load_adapter, read_adapter, set_heads
from davae.backbones.libraries import home_of, stored_class
from davae.models.autoencoder import AutoencoderDA
from davae.models.instead import instead_of, is_pipeline
from davae.models.loading import load_autoencoder
from davae.models.plain import expect_plain
from davae.models.saved_weights import read_config
from davae.models.saving import verify

_SCHEDULER = "scheduler"
_INDEX = "model_index.json"


def load_finetuned(pipe: Any, folder: str | Path, autoencoder: str | Path | None = None, merge: bool = False) -> Any:
    """Turn an upgraded stock pipeline into the fine-tuned one: `load_finetuned(davae.upgrade(pipe), "runs/NAME")`.

    LoRA is loaded by the pipeline itself where it can, so that its scale, `set_adapters`, `fuse_lora` and
    `unload_lora_weights` work; the heads stay. The scheduler becomes the one that lies beside the adapter, whose
    timestep shift is the recipe's; where none lies there, the pipeline's stays.

    Args:
        pipe: made by `davae.upgrade`, on the scale and the detail channels of the fine-tuned one. It is changed
            and returned. Offload or compile it afterwards.
        folder: a run, of which its first fine-tuning is taken (`transformer/`), or the folder of an adapter.
        autoencoder: folder of the trained `AutoencoderDA`. None takes the run's own, and leaves the pipeline's
            where there is none.
        merge: fold LoRA into the weights. Pipelines that cannot load LoRA always do.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the pipeline is not upgraded, its weights are not plain (see `expect_plain`), or the parts do not
            fit it; it is left as it was.
    """
    _expect_upgraded(pipe)
    attaches = isinstance(pipe, LoraBaseMixin) and not merge
    expect_plain(pipe.transformer, "load fine-tuned parts into", adapters=attaches)
    expect_plain(pipe.vae, "load fine-tuned parts beside")
    folder = Path(folder)
    source = _adapter_folder(folder)
    if autoencoder is None and (folder / "tokenizer").is_dir():
        autoencoder = folder / "tokenizer"
    adapter = read_adapter(pipe.transformer, verify(source))
    components: dict[str, object] = {}
    if autoencoder is not None:
        components["vae"] = _trained_autoencoder(pipe.vae, Path(autoencoder))
    if (source / _SCHEDULER).is_dir():
        components[_SCHEDULER] = stored_scheduler(source / _SCHEDULER)

    if attaches:
        set_heads(pipe.transformer, adapter.heads)
        pipe.load_lora_weights(source, weight_name=LORA_FILE)
    else:
        load_adapter(pipe.transformer, source)
    pipe.register_modules(**components)
    return pipe


def _expect_upgraded(pipe: Any) -> None:
    if not is_pipeline(pipe):
        raise ValueError(
            f"davae.load_finetuned takes an upgraded pipeline, then the folder of what was trained; "
            f"{instead_of(pipe)}"
        )
    autoencoder = pipe.components.get("vae")
    if not isinstance(autoencoder, AutoencoderDA):
        raise ValueError(
            f"Fine-tuned parts belong into an upgraded pipeline; got a {type(pipe).__name__} with a "
            f"{type(autoencoder).__name__}. Call davae.upgrade(pipe) first."
        )


def _adapter_folder(folder: Path) -> Path:
    """The folder of a saved adapter: itself, or inside a run; what is known to be another folder is said to be."""
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(
            f"There is nothing fine-tuned in {folder}: got {got}, allowed are the folder of a run and that of an "
            f"adapter on this machine. Correct the path, or download it first."
        )
    whole = next((path for path in (folder, folder / "pipeline") if (path / _INDEX).is_file()), None)
    if whole is not None:
        raise ValueError(
            f"{whole} is a whole pipeline, with nothing to load into another. Open it by the from_pretrained of its "
            f"own class, which its {_INDEX} names."
        )
    inside = folder / "transformer"
    if not inside.is_dir() and (folder / "run.json").is_file():
        raise FileNotFoundError(
            f"The run in {folder} has not been fine-tuned: it has no {inside.name}/. Run 'davae finetune' on its "
            f"recipe."
        )
    return inside if inside.is_dir() else folder


def _trained_autoencoder(current: AutoencoderDA, path: Path) -> Any:
    trained = load_autoencoder(path)
    if not isinstance(trained, AutoencoderDA):
        raise ValueError(
            f"The autoencoder in {path} is no upgraded one: got a {type(trained).__name__}. Give the tokenizer/ of "
            f"a run."
        )
    if (trained.layout, trained.compression) != (current.layout, current.compression):
        raise ValueError(
            f"The autoencoder in {path} does not fit the pipeline: got {trained.layout}, compression "
            f"{trained.compression}; the pipeline has {current.layout}, compression {current.compression}. Upgrade "
            f"with scale={trained.config['scale']}, detail_channels={trained.layout.detail_channels}."
        )
    return trained.to(current.device, current.dtype)


def stored_scheduler(folder: Path) -> Any:
    """The scheduler in a folder, of the class that it was saved as.

    Raises:
        FileNotFoundError: there is none.
        ValueError: neither davae nor diffusers has the class.
    """
    file = folder / diffusers.SchedulerMixin.config_name
    config = read_config(file)
    name = config.get("_class_name", "")
    return stored_class(file, home_of(name), name, diffusers.SchedulerMixin).from_config(config)
