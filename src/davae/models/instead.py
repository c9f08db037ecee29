"""What somebody gave where a call takes something else: what it is, and which call takes it."""

from os import PathLike
from typing import Any

from diffusers.models.modeling_utils import ModelMixin

from davae.models.bases import FAMILIES, STRUCTURED


def instead_of(given: Any) -> str:
    """A clause and a sentence, "got X. Do Z.", about an argument of the wrong kind.

    Args:
        given: anything: a name, a path, a class, a pipeline, a model.
    """
    name = type(given).__name__
    if isinstance(given, str | PathLike):
        return (
            f"got the name {str(given)!r}. Load it first: "
            f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(given)!r}), then davae.upgrade(pipe)."
        )
    if isinstance(given, type):
        return f"got the class {given.__name__}. Give what its from_pretrained loads."
    if is_pipeline(given):
        if is_upgraded(getattr(given, "vae", None)):
            return (
                f"got a {name} that is upgraded already. Draw with it, or load what was trained by "
                f"davae.load_finetuned(pipe, folder)."
            )
        return f"got a {name}. Call davae.upgrade(pipe)."
    if is_upgraded(given):
        return (
            f"got an autoencoder that is upgraded already. The transformer beside it is made by "
            f"davae.widen(transformer, detail_channels={given.config.detail_channels})."
        )
    if name in FAMILIES:
        return f"got a {name}, an autoencoder. Call davae.AutoencoderDA.from_base(vae, scale=2)."
    if name.startswith("UNet"):
        return f"got a {name}. U-Nets are not upgraded; take a diffusion transformer."
    if may_be_transformer(given):
        return f"got a {name}. If it is a diffusion transformer, call davae.widen(transformer, detail_channels=D)."
    return f"got {given!r}." if given is None or isinstance(given, int | float) else f"got a {name}."


def may_be_transformer(given: object) -> bool:
    """Whether something is a model of diffusers that is no autoencoder and no U-Net."""
    name = type(given).__name__
    return isinstance(given, ModelMixin) and "Autoencoder" not in name and not name.startswith("UNet")


def is_pipeline(given: object) -> bool:
    """Whether something is a loaded pipeline of diffusers."""
    if not hasattr(given, "components"):
        return False
    from diffusers import DiffusionPipeline  # loads much, which whoever has a pipeline has loaded

    return isinstance(given, DiffusionPipeline)


def is_upgraded(autoencoder: object) -> bool:
    """Whether something is an `AutoencoderDA`."""
    return type(autoencoder).__name__ == STRUCTURED
