"""The images that are judged: a folder in the official layout, or one that `davae generate` drew."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from davae.data.captioned_images import captioned_images
from davae.data.drawn_folder import ALBUM
from davae.evaluate.geneval.prompts import (
    Prompt,
    read_prompts,
    require_official,
    require_same,
)

_FORMS: Final = ("png", "jpg", "jpeg", "webp")
_PROMPT_FOLDER, _NUMBERED = re.compile(r"\d{5}"), re.compile(r"\d+")


@dataclass(frozen=True)
class PromptImage:
    """An image of a prompt.

    Args:
        name: path inside the folder, with slashes; of a sample in tar shards "shard/key".
        read: its file's bytes.
        prompt: what it is of.
    """

    name: str
    read: Callable[[], bytes]
    prompt: Prompt


def find_images(folder: Path, metadata: Path | None = None, kind: str = "") -> list[PromptImage]:
    """The images of a folder, prompt by prompt.

    Args:
        folder: `00000/metadata.jsonl` and `00000/samples/0000.png` for every prompt, or what
            `davae generate --prompts evaluation_metadata.jsonl` drew, as files or as tar shards.
        metadata: the file of prompts. A folder of the official layout knows its own and has to agree with the file;
            without a file it has to be complete.
        kind: of what `davae generate` keeps beside its images, "baseline" or "preview"; empty takes the images.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a prompt or an image is missing, or prompts are not those of the file; the text names them.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Correct the path.")
    wanted = None if metadata is None else read_prompts(metadata)
    if not any(_PROMPT_FOLDER.fullmatch(path.name) and path.is_dir() for path in folder.iterdir()):
        return _drawn(folder, wanted, metadata, kind)
    if kind:
        raise ValueError(f"{folder} was not drawn by davae: it holds no {kind} images. Leave out --kind.")
    return _official(folder, wanted, str(metadata))


def _official(folder: Path, wanted: Sequence[Prompt] | None, source: str) -> list[PromptImage]:
    places = sorted(path for path in folder.iterdir() if _PROMPT_FOLDER.fullmatch(path.name) and path.is_dir())
    numbers = {int(path.name) for path in places}
    count = len(places) if wanted is None else max(len(wanted), len(places))
    if absent := [number for number in range(count) if number not in numbers]:
        raise ValueError(
            f"{folder} lacks {_listed([f'{number:05d}' for number in absent])} of {count} prompts. Draw the missing "
            f"ones, or restore the folders."
        )
    prompts = [_own_prompt(place / "metadata.jsonl") for place in places]
    if wanted is None:
        require_official(prompts)
    else:
        require_same(prompts, wanted, [str(place) for place in places], source)
    samples = {place: _samples(place / "samples") for place in places}
    _require_even({place.name: len(paths) for place, paths in samples.items()})
    return [
        PromptImage(path.relative_to(folder).as_posix(), path.read_bytes, prompt)
        for (place, paths), prompt in zip(samples.items(), prompts, strict=True)
        for path in paths
    ]


def _own_prompt(path: Path) -> Prompt:
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}, which says what was asked. Restore it.")
    prompts = read_prompts(path)
    if len(prompts) != 1:
        raise ValueError(f"{path} has {len(prompts)} prompts; allowed is one, of which the images are. Restore it.")
    return prompts[0]


def _samples(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(path for path in found if path.suffix[1:].lower() in _FORMS and _NUMBERED.fullmatch(path.stem))
    if not paths:
        raise ValueError(f"{folder} holds no image; allowed are 0000.png, 0001.png, ... Draw the missing ones.")
    return paths


def _drawn(folder: Path, wanted: Sequence[Prompt] | None, metadata: Path | None, kind: str) -> list[PromptImage]:
    if not (folder / ALBUM).is_file():
        raise ValueError(
            f"{folder} holds no images of GenEval; allowed are folders 00000, 00001, ... with metadata.jsonl and "
            f"samples, or what 'davae generate' drew."
        )
    if wanted is None:
        raise ValueError(
            f"{folder} was drawn by davae, which keeps no more of a prompt than its text. Name the file that it was "
            f"drawn from by --prompts FILE."
        )
    found = captioned_images(folder, metadata, kind)
    prompts = (prompt for prompt in wanted for _ in range(len(found) // len(wanted)))
    return [PromptImage(image.name, image.read, prompt) for image, prompt in zip(found, prompts, strict=True)]


def _require_even(counts: Mapping[str, int]) -> None:
    """Refuse prompts of which there are more or fewer images than of the others."""
    usual = Counter(counts.values()).most_common(1)[0][0]
    if odd := [f"{place} has {count}" for place, count in counts.items() if count != usual]:
        raise ValueError(
            f"All prompts need the same number of images: {_listed(odd)}, most have {usual}. Draw the missing ones, "
            f"or remove what is too much."
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
