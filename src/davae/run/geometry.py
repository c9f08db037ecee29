"""Latents of a run's autoencoders, known from configs alone: before anything is trained or loaded."""

from pathlib import Path

from diffusers.configuration_utils import FrozenDict

from davae.core.layout import LatentLayout
from davae.models.adapter import LatentGeometry, geometry_of
from davae.models.saved_weights import CONFIG, read_config
from davae.run.origins import Origins


def base(origins: Origins) -> LatentGeometry:
    """Of the pretrained autoencoder that a run upgrades."""
    return geometry_of(_config(origins.base_path))


def upgraded(origins: Origins) -> LatentGeometry:
    """Of the run's tokenizer: as its section asks for, or as the run says that it is taken from."""
    config = origins.recipe.tokenizer
    if config is None:
        return geometry_of(_config(origins.result("tokenizer")))
    return upgrade(base(origins), config.scale, config.detail_channels)


def upgrade(geometry: LatentGeometry, scale: int, detail_channels: int | None) -> LatentGeometry:
    """Of an upgrade by `scale`; None gives as many detail channels as there are base channels."""
    channels = geometry.layout.base_channels
    layout = LatentLayout(channels, channels if detail_channels is None else detail_channels)
    return LatentGeometry(layout, geometry.compression * scale)


def _config(folder: Path) -> FrozenDict:
    return FrozenDict(read_config(folder / CONFIG))
