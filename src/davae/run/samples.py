"""What section sample of a run draws, on disk: images in the forms that are asked for, and their latents."""

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from davae.core.checked import damaged, note
from davae.core.state import found_json
from davae.data.drawn_folder import STORE
from davae.run import inputs
from davae.run.pipelines import sample_config
from davae.run.run import Run
from davae.sampling.latent_shards import LatentShards
from davae.sampling.store import FormatName, ImageStore
from davae.sampling.whole_files import SUFFIXES, is_whole

logger = logging.getLogger(__name__)

KEPT_BY = ("count", "png", "npz")
"""Settings that change no image: what stands is kept under others."""


class Samples:
    """The folder samples/ of a run.

    Args:
        run: with a section sample.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, sample_config(run)

    @cached_property
    def store(self) -> ImageStore:
        """The images."""
        formats: list[FormatName] = ["png"] if self.config.png else []
        if self.config.npz:
            formats.append("npz")
        return ImageStore(
            self.run.folder.samples,
            inputs.samples(self.run),
            self.config.count,
            unit=self.config.batch_size,
            formats=formats,
        )

    @cached_property
    def latents(self) -> LatentShards:
        """Their latents."""
        return LatentShards(self.run.folder.samples, self.store.units)

    def prepare(self) -> None:
        """Drop what other settings drew; keep what an interrupted run of these settings left."""
        store, before = self.store, self.store.stored_inputs
        if before != store.inputs:
            is_kept = before is not None and _image_inputs(before) == _image_inputs(store.inputs)
            self.latents.discard(is_kept)
            store.discard(self.config.count if is_kept else 0)
        store.begin()

    def note(self) -> None:
        """Say that what was just drawn is whole."""
        note(self.store.folder, _files(self.store.folder))

    def require_all(self) -> None:
        """Refuse to be read before all latents of these settings are drawn.

        Raises:
            ValueError: there are none, those of other settings, or not all.
        """
        if self.store.stored_inputs != self.store.inputs:
            raise ValueError(
                f"{self.store.folder} does not hold samples of these settings. Run 'davae sample RECIPE' first; if "
                f"it passes over what it did before, remove {self.run.folder.gallery}."
            )
        count = sum(len(unit) for unit in self.store.units if self.latents.has(unit))
        if count != self.config.count:
            raise ValueError(
                f"{self.store.folder} holds {count} of {self.config.count} samples. "
                f"Run 'davae sample RECIPE' to draw the others."
            )


def stand(gallery: Path) -> bool:
    """Whether samples lie beside the picture of the first ones, all whole, and say of which settings they are."""
    folder = gallery.parent
    if not gallery.exists() or "sample" not in (found_json(folder / STORE, dict[str, Any]) or {}):
        return False
    if found := damaged(folder, _files(folder), is_whole):
        logger.warning("Samples in %s are damaged and drawn again: %s", folder, ", ".join(found[:3]))
    return not found


def _files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)


def _image_inputs(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that an image itself depends on."""
    sample = values.get("sample")
    settings = sample if isinstance(sample, Mapping) else {}
    return {**values, "sample": {key: value for key, value in settings.items() if key not in KEPT_BY}}
