"""A pretrained pair: a saved pipeline that is opened part by part.

Text encoders, transformer and autoencoder of a large model are never in memory together unless an image is drawn.
Nothing in the folder is code: classes come from known libraries (`backbones.libraries`), weights from safetensors.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch

from davae.backbones.base import Backbone
from davae.backbones.libraries import home_of, library_of, stored_class
from davae.backbones.registry import BACKBONES
from davae.models.loading import explained, pipeline_folder
from davae.models.saved_weights import CONFIG, read_config, readable
from davae.models.saving import verify

INDEX = "model_index.json"
_TRANSFORMER = "transformer"
_SCHEDULER = "scheduler"
_DESCRIPTIONS = ("config.json", "tokenizer.json", "vocab.json", "special_tokens_map.json")


class Pair:
    """A saved pipeline by its folder or its name on the hub.

    Args:
        source: the folder, or "org/name"; parts of a hub repository are fetched when they are opened.

    Raises:
        FileNotFoundError: there is no saved pipeline.
        ValueError: its index cannot be read or names a class of a library that is not allowed, or its transformer is
            of no known family.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        self._file = self.folder() / INDEX
        if not self._file.is_file():
            raise FileNotFoundError(
                f"There is no pretrained pair in {source}: {INDEX} is missing. "
                f"Give the folder of a saved pipeline, its name on the hub, or 'embedded'."
            )
        self.index = _read_index(self._file)
        if _TRANSFORMER not in self.parts:
            raise ValueError(
                f"Cannot upgrade the pair in {source}: its {self.pipeline_name} has no transformer; got "
                f"{', '.join(self.parts)}. Take a pipeline with a diffusion transformer."
            )
        class_name = self.index[_TRANSFORMER][1]
        if class_name not in BACKBONES:
            raise ValueError(
                f"Cannot upgrade the pair in {source}: its transformer is a {class_name}; known are "
                f"{', '.join(sorted(BACKBONES))}."
            )

    def folder(self, parts: Sequence[str] = ()) -> Path:
        """The folder on disk, with these parts fetched."""
        return pipeline_folder(self.source, parts)

    @property
    def parts(self) -> list[str]:
        """Names of the components that are there."""
        return [name for name, (_, class_name) in _components(self.index).items() if class_name is not None]

    @property
    def pipeline_name(self) -> str:
        """Class name of the pipeline."""
        return self.index["_class_name"]

    @property
    def pipeline_class(self) -> Any:
        """Class of the pipeline.

        Raises:
            ValueError: neither davae nor diffusers has it.
        """
        return stored_class(self._file, home_of(self.pipeline_name), self.pipeline_name, diffusers.DiffusionPipeline)

    @property
    def backbone(self) -> Backbone:
        """Family of the transformer."""
        return BACKBONES[self.index[_TRANSFORMER][1]]

    @property
    def is_text(self) -> bool:
        """Whether images are drawn from prompts; else from class labels."""
        return self.backbone.is_text

    @property
    def text_parts(self) -> list[str]:
        """Components that encode text and are there."""
        return [name for name in self.backbone.text_parts if name in self.parts]

    @cached_property
    def transformer_config(self) -> Any:
        """Config of the transformer with every default, without its weights."""
        cls, path = self.model_class(_TRANSFORMER), self.folder([_TRANSFORMER]) / _TRANSFORMER
        with torch.device("meta"), explained(cls, path):
            return cls.from_config(cls.load_config(path)).config

    def load_transformer(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pretrained transformer, in eval mode.

        Raises:
            FileNotFoundError: its weights are not there, or not all of them.
            ValueError: they do not fit its config, are quantised, or a file is damaged.
        """
        cls, path = self.model_class(_TRANSFORMER), verify(self.folder([_TRANSFORMER]) / _TRANSFORMER)
        with readable(path) as standard, explained(cls, path):
            model, found = cls.from_pretrained(standard, dtype=dtype, use_safetensors=True, output_loading_info=True)
        _expect_all(path, found["missing_keys"], found["unexpected_keys"])
        return model.eval()

    def load_scheduler(self) -> Any:
        """The scheduler that the pair is drawn with.

        Raises:
            ValueError: there is none.
        """
        cls = self._class_of(_SCHEDULER, diffusers.SchedulerMixin)
        return cls.from_pretrained(self.folder([_SCHEDULER]) / _SCHEDULER)

    def load(self, dtype: torch.dtype = torch.float32, **components: Any) -> Any:
        """The whole pipeline; `components` take the place of saved ones.

        Raises:
            FileNotFoundError: weights of a part are not there, or not all of them.
            ValueError: a file is damaged.
        """
        parts = [name for name in self.parts if name not in components]
        folder, cls = verify(self.folder(parts)), self.pipeline_class
        with _readable_pipeline(folder, parts) as path, explained(cls, folder):
            return cls.from_pretrained(path, dtype=dtype, use_safetensors=True, **components)

    def model_class(self, part: str) -> Any:
        """Class of a component of diffusers or davae that has weights, for example of the transformer.

        Raises:
            ValueError: it is not there, or its library has no such model.
        """
        return self._class_of(part, diffusers.ModelMixin)

    def _class_of(self, part: str, kind: type) -> Any:
        if part not in self.parts:
            raise ValueError(f"The pair in {self.source} has no {part}; got {', '.join(self.parts)}.")
        library, name = self.index[part]
        return stored_class(self._file, library, name, kind)


@contextmanager
def _readable_pipeline(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """A folder with the same pipeline, weights under the names that libraries know; see `readable`."""
    with ExitStack() as stack:
        places = {}
        for part in parts:
            for file in (folder / part).iterdir() if (folder / part).is_dir() else ():
                if file.name.endswith(_DESCRIPTIONS):
                    read_config(file)
            if (folder / part / CONFIG).is_file():  # a model; tokenizers and schedulers have none
                places[part] = stack.enter_context(readable(folder / part))
        if all(place == folder / part for part, place in places.items()):
            yield folder
            return
        links = Path(stack.enter_context(TemporaryDirectory(prefix="davae-")))
        for path in folder.iterdir():
            (links / path.name).symlink_to(places.get(path.name, path).resolve())
        yield links


def _read_index(file: Path) -> dict[str, Any]:
    """The contents of a pipeline's index, refused before anything that it names is looked for."""
    index = read_config(file)
    if not isinstance(index.get("_class_name"), str):
        raise ValueError(
            f"{file} is not the index of a pipeline: allowed is a JSON object whose _class_name is the name of a "
            f"class of diffusers or davae. Save the pipeline again."
        )
    for library, class_name in _components(index).values():
        if (library, class_name) != (None, None):
            library_of(file, library, class_name)
    return index


def _components(index: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name -> (library, class), or twice None where the component is not there. The other entries are settings."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2
    }


def _expect_all(path: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse weights that are not the model's: diffusers goes on with fresh ones, and logs it."""
    if missing or unexpected:
        raise ValueError(
            f"The weights in {path} do not fit their config: {len(missing)} missing, {len(unexpected)} unexpected, "
            f"for example {', '.join((*missing, *unexpected)[:3])}. Correct config.json, or save the model again."
        )
