"""`davae.load_finetuned`: what a training left, onto the upgraded stock pipeline; it draws as `davae export` does."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin

from davae.backbones.adapter import LORA_FILE, load_adapter, read_adapter, set_heads
from davae.backbones.libraries import stored_class
from davae.models.autoencoder import AutoencoderDA

_SCHEDULER = "scheduler"


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
        ValueError: the pipeline is not upgraded, or the parts do not fit it; it is left as it was.
    """
    if not isinstance(pipe.vae, AutoencoderDA):
        raise ValueError(
            f"Fine-tuned parts belong into an upgraded pipeline; got a {type(pipe).__name__} with a "
            f"{type(pipe.vae).__name__}. Call davae.upgrade(pipe) first."
        )
    folder = Path(folder)
    source = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if autoencoder is None and (folder / "tokenizer").is_dir():
        autoencoder = folder / "tokenizer"
    adapter = read_adapter(pipe.transformer, source)
    components: dict[str, object] = {}
    if autoencoder is not None:
        components["vae"] = _trained_autoencoder(pipe.vae, Path(autoencoder))
    if (source / _SCHEDULER).is_dir():
        components[_SCHEDULER] = _stored_scheduler(pipe.scheduler, source / _SCHEDULER)

    loads_lora = isinstance(pipe, LoraBaseMixin)
    if merge or not loads_lora:
        load_adapter(pipe.transformer, source)
    else:
        set_heads(pipe.transformer, adapter.heads)
        pipe.load_lora_weights(source, weight_name=LORA_FILE)
    pipe.register_modules(**components)
    return pipe


def _trained_autoencoder(current: AutoencoderDA, path: Path) -> Any:
    trained = AutoencoderDA.from_pretrained(path, use_safetensors=True)
    if (trained.layout, trained.compression) != (current.layout, current.compression):
        raise ValueError(
            f"The autoencoder in {path} does not fit the pipeline: got {trained.layout}, compression "
            f"{trained.compression}; the pipeline has {current.layout}, compression {current.compression}. Upgrade "
            f"with scale={trained.config['scale']}, detail_channels={trained.layout.detail_channels}."
        )
    return trained.to(current.device, current.dtype).eval()


def _stored_scheduler(current: Any, folder: Path) -> Any:
    """The scheduler in a folder, of the class that it was saved as, whatever the pipeline has now."""
    config = type(current).load_config(folder)
    cls = stored_class(folder / current.config_name, "diffusers", config.get("_class_name"), diffusers.SchedulerMixin)
    return cls.from_config(config)
