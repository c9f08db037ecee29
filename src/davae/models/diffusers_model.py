"""The base of this library's models: diffusers' mixins and decorators, with the types that diffusers leaves out."""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from diffusers import configuration_utils
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import accelerate_utils

Function = TypeVar("Function", bound=Callable[..., object])


if TYPE_CHECKING:

    class ModelConfig(dict[str, Any]):
        """Entries of a config.json, which are attributes too."""

        def __getattr__(self, name: str) -> Any:
            """The entry of this name."""


class DiffusersModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # config_name is a name in one, None in the other
    """An ordinary diffusers model: `save_pretrained`, `from_pretrained`, `config`, offload, checkpointing."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str] | None, **kwargs: Any) -> Any:
        """As diffusers loads a model, but from safetensors alone: a pickle can run anything."""
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    if TYPE_CHECKING:  # diffusers declares these by their default, None, and hides the signature of `to`
        _no_split_modules: list[str] | None  # type: ignore[assignment]
        _repeated_blocks: list[str]
        _skip_layerwise_casting_patterns: list[str] | None  # type: ignore[assignment]
        _keep_in_fp32_modules: list[str] | None  # type: ignore[assignment]
        _gradient_checkpointing_func: Callable[..., Any]

        @property
        def config(self) -> ModelConfig:
            """Arguments of the constructor."""

        def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
            """As `nn.Module.to`."""


class Decorator(Protocol):
    """Takes a function and gives one of the same type back."""

    def __call__(self, function: Function, /) -> Function:
        """The decorated function."""


register_to_config: Decorator = configuration_utils.register_to_config
"""Of a constructor: its arguments are stored in the model's config."""
apply_forward_hook: Decorator = accelerate_utils.apply_forward_hook
"""Of a method: under offload its weights are brought to the device first, as for `forward`."""
