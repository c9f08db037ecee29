"""Image files and the captions that they are of, matched by what says so and never by chance."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from davae.data.annotations import json_lines, parse_captions, parse_json, parse_object, read_text
from davae.data.errors import DataError
from davae.data.mjhq import read_mjhq
from davae.data.prompt_list import read_prompts

_FORMS: Final = (".png", ".jpg", ".jpeg", ".webp")
_BESIDE: Final = re.compile(r"(\d+)-\w+(\.\w+)")  # what was drawn beside an image
_GRID: Final = "grid.png"
_DRAWN: Final = "generation.json"
_METADATA: Final = "metadata.jsonl"


@dataclass(frozen=True)
class CaptionedImage:
    """An image file and what it is of.

    Args:
        name: path inside the folder, with slashes.
        path: of the file.
        caption: as it was written.
        category: of MJHQ-30K; empty elsewhere.
    """

    name: str
    path: Path
    caption: str
    category: str = ""


def captioned_images(folder: Path, prompts: Path | None = None, kind: str = "") -> list[CaptionedImage]:
    """The images of a folder with their captions.

    Args:
        folder: what `davae generate --no-shards` or `davae sample` drew; images named by their ids where `prompts` is
            MJHQ-30K's; or any images named by number, which prompts are of in their order.
        prompts: file of the captions; None takes what the folder itself says, by metadata.jsonl or beside each image.
        kind: "baseline" or "preview" takes what was drawn beside each image in its place; empty takes the images.

    Raises:
        FileNotFoundError: there is no such folder or file.
        DataError: an image has no caption, a caption no image, or they are not the same; the text names the first.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Correct the path.")
    files = _image_files(folder)
    if not files:
        raise DataError(f"no image in {folder}: allowed are {', '.join(_FORMS)}; give the folder that holds them")
    images = _matched(folder, files, prompts)
    return [_beside(image, kind) for image in images] if kind else images


def _matched(folder: Path, files: Sequence[Path], prompts: Path | None) -> list[CaptionedImage]:
    stated = _stated(folder, files)
    if prompts is None:
        return _by_name(folder, files, stated)
    is_mjhq = prompts.suffix.lower() == ".json" and _is_object(prompts)
    if is_mjhq and not (folder / _DRAWN).is_file():
        return _by_id(folder, files, prompts)
    captions = read_prompts(prompts)
    categories = [entry.category for entry in read_mjhq(prompts)] if is_mjhq else [""] * len(captions)
    return _by_number(folder, files, captions, categories, stated)


def _image_files(folder: Path) -> list[Path]:
    """Images, without the grid of them and what was drawn beside each."""
    found = {path for path in folder.rglob("*") if path.suffix.lower() in _FORMS and not path.name.startswith(".")}
    named = {path: _BESIDE.fullmatch(path.name) for path in found}
    beside = {path for path, match in named.items() if match and path.with_name(match[1] + match[2]) in found}
    return sorted(found - beside - {folder / _GRID})


def _beside(image: CaptionedImage, kind: str) -> CaptionedImage:
    path = image.path.with_stem(f"{image.path.stem}-{kind}")
    if not path.is_file():
        raise DataError(f"image {image.path} has no {kind} beside it, {path.name}: draw it with --{kind}")
    return replace(image, name=Path(image.name).with_name(path.name).as_posix(), path=path)


def _stated(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """Name -> caption, as far as the folder itself says."""
    metadata = folder / _METADATA
    if metadata.is_file():
        text = read_text(metadata.read_bytes(), str(metadata))
        return {
            str(entry.get("file_name")): caption
            for where, entry in json_lines(text, str(metadata))
            for caption in parse_captions(entry, where)[:1]
        }
    if not (folder / _DRAWN).is_file():
        return {}
    captions = {}
    for path in files:
        facts = path.with_suffix(".json")
        if facts.is_file():
            entry = parse_object(read_text(facts.read_bytes(), str(facts)), str(facts))
            captions[path.name] = next(iter(parse_captions(entry, str(facts))), "")
    return captions


def _by_name(folder: Path, files: Sequence[Path], stated: dict[str, str]) -> list[CaptionedImage]:
    names = [path.relative_to(folder).as_posix() for path in files]
    if absent := [name for name in names if name not in stated]:
        raise DataError(
            f"image {absent[0]} has no caption in {folder}: allowed are {_METADATA} with file_name and text, what "
            f"'davae generate' writes beside its images, or a file of prompts; give --prompts FILE"
        )
    if absent := [name for name in stated if name not in set(names)]:
        raise DataError(f"caption of {absent[0]} has no image in {folder}: restore the image, or remove the caption")
    return [CaptionedImage(name, path, stated[name]) for name, path in zip(names, files, strict=True)]


def _by_id(folder: Path, files: Sequence[Path], prompts: Path) -> list[CaptionedImage]:
    entries = {entry.id: entry for entry in read_mjhq(prompts)}
    by_id: dict[str, Path] = {}
    for path in files:
        if path.stem in by_id:
            raise DataError(
                f"two images in {folder} are of the id {path.stem}: {by_id[path.stem]} and {path}; keep one"
            )
        if path.stem not in entries:
            raise DataError(f"image {path} has no caption: {prompts} has no entry {path.stem}; take it away")
        by_id[path.stem] = path
    if absent := [name for name in entries if name not in by_id]:
        raise DataError(
            f"{len(absent)} of {len(entries)} entries of {prompts} have no image in {folder}, {absent[0]} the first: "
            f"draw them"
        )
    return [
        CaptionedImage(by_id[key].relative_to(folder).as_posix(), by_id[key], entry.prompt, entry.category)
        for key, entry in entries.items()
    ]


def _by_number(
    folder: Path, files: Sequence[Path], captions: Sequence[str], categories: Sequence[str], stated: dict[str, str]
) -> list[CaptionedImage]:
    """Images named by number, in order; as many of each prompt."""
    if odd := [path.name for path in files if not path.stem.isdecimal()]:
        raise DataError(
            f"image {odd[0]} in {folder} is not named by number, so that nothing says which prompt it is of: allowed "
            f"are 000000.png, 000001.png, ..., or a {_METADATA} with file_name and text; write one"
        )
    ordered = sorted(files, key=lambda path: int(path.stem))
    first, per_prompt = int(ordered[0].stem), len(files) // len(captions)
    gap = next((path for number, path in enumerate(ordered, first) if int(path.stem) != number), None)
    if gap is not None or first > 1:
        raise DataError(
            f"images in {folder} are not numbered without a gap: {(gap or ordered[0]).name}; draw the rest"
        )
    if per_prompt * len(captions) != len(files) or not per_prompt:
        raise DataError(
            f"{len(files)} images in {folder} do not match {len(captions)} prompts: allowed is the same number of "
            f"images of each prompt; give the file that they were drawn from"
        )
    images = []
    for number, path in enumerate(ordered):
        name, caption = path.relative_to(folder).as_posix(), captions[number // per_prompt]
        if stated.get(name, caption) != caption:
            raise DataError(
                f"image {name} in {folder} is of {stated[name]!r}, not of {caption!r}: give the file that the images "
                f"were drawn from"
            )
        images.append(CaptionedImage(name, path, caption, categories[number // per_prompt]))
    return images


def _is_object(path: Path) -> bool:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts {path}. Correct the path.")
    return isinstance(parse_json(read_text(path.read_bytes(), str(path)), str(path)), dict)
