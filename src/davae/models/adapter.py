"""One adapter for plain and upgraded autoencoders: what caching, sampling, training and evaluation ask of either.

Three units of latents meet here. Raw moments are what the encoders give, and what a latent cache stores. A stored
latent is what diffusers' `encode` gives and `decode` takes. The transformer's latent has about mean 0 and variance 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from davae.core.layout import LatentLayout
from davae.core.scaling import LatentScaling
from davae.models.autoencoder import AutoencoderDA
from davae.models.bases import family_of
from davae.models.declared_scaling import scaling_of


@dataclass(frozen=True)
class LatentGeometry:
    """What an autoencoder's latents look like.

    Args:
        layout: base and detail channels; a plain autoencoder has no detail.
        compression: pixels of an image that a latent position stands for, a side.
    """

    layout: LatentLayout
    compression: int


def geometry_of(config: Mapping[str, Any]) -> LatentGeometry:
    """Geometry of an autoencoder, plain or upgraded, from the contents of its config.json alone.

    Raises:
        ValueError: its class is unknown, or an entry is missing or of another type.
    """
    class_name = str(config.get("_class_name", "an autoencoder without _class_name"))
    try:
        return _geometry(class_name, config)
    except (ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(
            f"The config of this {class_name} does not describe its latent: {type(error).__name__}: {error}. Save or "
            f"download it again."
        ) from error


def _geometry(class_name: str, config: Mapping[str, Any]) -> LatentGeometry:
    if class_name == AutoencoderDA.__name__:
        layout = LatentLayout(config["latent_channels"] - config["detail_channels"], config["detail_channels"])
        base_compression = family_of(config["base_class"]).compression(config["base_config"])
        return LatentGeometry(layout, base_compression * config["scale"])
    family = family_of(class_name)
    return LatentGeometry(LatentLayout(family.latent_channels(config), 0), family.compression(config))


def adapt(autoencoder: ModelMixin) -> "AutoencoderAdapter":
    """The adapter of a diffusers autoencoder.

    Raises:
        ValueError: its class is unknown.
    """
    return UpgradedAdapter(autoencoder) if isinstance(autoencoder, AutoencoderDA) else PlainAdapter(autoencoder)


class AutoencoderAdapter(ABC):
    """An autoencoder as the rest of the library uses it.

    Args:
        model: the diffusers autoencoder; it is used, not copied.
    """

    def __init__(self, model: ModelMixin) -> None:
        self.model = model

    @property
    @abstractmethod
    def geometry(self) -> LatentGeometry:
        """Channels and compression of the latent."""

    @property
    @abstractmethod
    def raw_scaling(self) -> LatentScaling:
        """Raw moments -> the transformer's latent.

        Raises:
            ValueError: the autoencoder declares none, or its detail is not calibrated.
        """

    @abstractmethod
    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean [B, C + D, h, w], log-variance [B, D, h, w]) of images [B, 3, H, W] in [-1, 1], raw."""

    @property
    def layout(self) -> LatentLayout:
        """Channels of the latent."""
        return self.geometry.layout

    @property
    def compression(self) -> int:
        """Pixels of an image that a latent position stands for, a side."""
        return self.geometry.compression

    @property
    def scaling(self) -> LatentScaling:
        """Stored latent -> the transformer's latent.

        Raises:
            ValueError: the autoencoder declares none.
        """
        return scaling_of(self.model)

    def stored(self, latents: Tensor) -> Tensor:
        """The transformer's latents -> stored ones: scaled in float32, then rounded to the model's dtype.

        Raises:
            ValueError: the autoencoder declares no scaling, or the latents are not its own.
        """
        return self.scaling.denormalise(latents.float()).to(self.model.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """The transformer's latents [B, C + D, h, w] -> images, nominally in [-1, 1], not clamped, in its dtype.

        The latents are on the device where the autoencoder computes: under offload that is not where its weights are.
        """
        return self.model.decode(self.stored(latents)).sample


class PlainAdapter(AutoencoderAdapter):
    """A base autoencoder of a known family."""

    def __init__(self, model: ModelMixin) -> None:
        super().__init__(model)
        self.family = family_of(type(model).__name__)

    @property
    def geometry(self) -> LatentGeometry:
        """See `AutoencoderAdapter`."""
        config = self.model.config
        return LatentGeometry(LatentLayout(self.family.latent_channels(config), 0), self.family.compression(config))

    @property
    def raw_scaling(self) -> LatentScaling:
        """See `AutoencoderAdapter`: the raw latent is the stored one."""
        return self.scaling

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `AutoencoderAdapter`: the posterior's mode, and no log-variances."""
        mean = self.family.encode(self.model, images)
        return mean, mean[:, :0]


class UpgradedAdapter(AutoencoderAdapter):
    """An `AutoencoderDA`."""

    model: AutoencoderDA

    @property
    def geometry(self) -> LatentGeometry:
        """See `AutoencoderAdapter`."""
        return LatentGeometry(self.model.layout, self.model.compression)

    @property
    def raw_scaling(self) -> LatentScaling:
        """See `AutoencoderAdapter`."""
        return self.model.raw_scaling

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `AutoencoderAdapter`."""
        base, mean, logvar = self.model.moments(images)
        return self.model.layout.join(base, mean), logvar

    def preview(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of the base channels alone, decoded by the base autoencoder and enlarged."""
        return self.model.preview(self.stored(latents))
