"""Images and the captions that they are of, matched by what says so and never by chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from davae.data.annotations import json_lines, parse_captions, parse_json, parse_object, read_text
from davae.data.drawn_folder import ALBUM, number_of
from davae.data.errors import DataError
from davae.data.image_list import ImageList, open_images
from davae.data.mjhq import read_mjhq
from davae.data.prompt_list import read_prompts

_METADATA: Final = "metadata.jsonl"


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what it is of.

    Args:
        name: path inside the folder, with slashes; of a sample in tar shards "shard/key".
        read: its file's bytes; see `ImageList.content` for errors.
        caption: as it was written.
        category: of MJHQ-30K; empty elsewhere.
    """

    name: str
    read: Callable[[], bytes]
    caption: str
    category: str = ""


def captioned_images(place: Path, prompts: Path | None = None, kind: str = "") -> list[CaptionedImage]:
    """The images of a folder or of tar shards with their captions.

    Args:
        place: what `davae generate` or `davae sample` drew; images named by their ids where `prompts` is MJHQ-30K's;
            or any images named by number, which prompts are of in their order.
        prompts: file of the captions; None takes what the images themselves say: shards beside each image, a folder
            by metadata.jsonl or beside each image.
        kind: "baseline" or "preview" takes what was drawn beside each image in its place; empty takes the images.

    Raises:
        FileNotFoundError: there is no such file of prompts.
        DataError: an image cannot be read or has no caption, a caption no image, or they are not the same; the text
            names the first.
    """
    images = open_images(place, kind)
    if images.unusable:
        name, reason = images.unusable[0]
        raise DataError(
            f"{len(images.unusable)} images of {place} cannot be read, {name} the first ({reason}): draw them again, "
            f"or take them away together with their captions"
        )
    stated = _stated(images, place, kind)
    if prompts is None:
        return _by_name(images, stated, _listed(place), kind)
    is_mjhq = prompts.suffix.lower() == ".json" and _is_object(prompts)
    if is_mjhq and not all(number_of(name, kind) is not None for name in images.ids):
        return _by_id(images, prompts)
    captions = read_prompts(prompts)
    categories = [entry.category for entry in read_mjhq(prompts)] if is_mjhq else [""] * len(captions)
    return _by_number(images, captions, categories, stated, kind)


def _stated(images: ImageList, place: Path, kind: str) -> dict[str, str]:
    """Name -> caption, as far as the images themselves say."""
    listed, stated = _listed(place), {}
    is_drawn = (place / ALBUM).is_file()
    for name, caption in zip(images.ids, images.captions, strict=True):
        itself = _without(name, kind)
        facts = (place / itself).with_suffix(".json")
        if caption:
            stated[name] = caption
        elif itself in listed:
            stated[name] = listed[itself]
        elif is_drawn and not listed and facts.is_file():
            entry = parse_object(read_text(facts.read_bytes(), str(facts)), str(facts))
            stated[name] = next(iter(parse_captions(entry, str(facts))), "")
    return stated


def _listed(place: Path) -> dict[str, str]:
    """Name -> caption of a folder's list of them; none where there is no list."""
    metadata = place / _METADATA
    if not metadata.is_file():
        return {}
    text = read_text(metadata.read_bytes(), str(metadata))
    return {
        str(entry["file_name"]): caption
        for where, entry in json_lines(text, str(metadata))
        if "file_name" in entry  # beside shards and arrays the list has captions alone
        for caption in parse_captions(entry, where)[:1]
    }


def _without(name: str, kind: str) -> str:
    """The image that something stands beside."""
    path = PurePosixPath(name)
    return str(path.with_stem(path.stem.removesuffix(kind and f"-{kind}")))


def _captioned(images: ImageList, index: int, caption: str, category: str = "") -> CaptionedImage:
    return CaptionedImage(images.ids[index], partial(images.content, index), caption, category)


def _by_name(images: ImageList, stated: dict[str, str], listed: dict[str, str], kind: str) -> list[CaptionedImage]:
    where, names = images.where, images.ids
    if absent := [name for name in names if name not in stated]:
        raise DataError(
            f"image {absent[0]} has no caption in {where}: allowed are {_METADATA} with file_name and text, what "
            f"'davae generate' writes beside its images, or a file of prompts; give --prompts FILE"
        )
    if absent := sorted(listed.keys() - {_without(name, kind) for name in names}):
        raise DataError(f"caption of {absent[0]} has no image in {where}: restore the image, or remove the caption")
    return [_captioned(images, index, stated[name]) for index, name in enumerate(names)]


def _by_id(images: ImageList, prompts: Path) -> list[CaptionedImage]:
    entries = {entry.id: entry for entry in read_mjhq(prompts)}
    by_id: dict[str, int] = {}
    for index, name in enumerate(images.ids):
        key = PurePosixPath(name).stem
        if key in by_id:
            raise DataError(
                f"two images in {images.where} are of the id {key}: {images.ids[by_id[key]]} and {name}; keep one"
            )
        if key not in entries:
            raise DataError(
                f"image {name} of {images.where} has no caption: {prompts} has no entry {key}; take it away"
            )
        by_id[key] = index
    if absent := [key for key in entries if key not in by_id]:
        raise DataError(
            f"{len(absent)} of {len(entries)} entries of {prompts} have no image in {images.where}, {absent[0]} the "
            f"first: draw them"
        )
    return [_captioned(images, by_id[key], entry.prompt, entry.category) for key, entry in entries.items()]


def _by_number(
    images: ImageList, captions: Sequence[str], categories: Sequence[str], stated: dict[str, str], kind: str
) -> list[CaptionedImage]:
    """Images named by number, in order; as many of each prompt."""
    where, numbers = images.where, dict[int, int]()
    for index, name in enumerate(images.ids):
        number = number_of(name, kind)
        if number is None:
            raise DataError(
                f"image {name} in {where} is not named by number, so that nothing says which prompt it is of: "
                f"allowed are 000000.png, 000001.png, ..., or a {_METADATA} with file_name and text; write one"
            )
        if number in numbers:
            raise DataError(
                f"two images in {where} have one number: {images.ids[numbers[number]]} and {name}; keep one"
            )
        numbers[number] = index
    first, per_prompt = min(numbers), len(numbers) // len(captions)
    gap = next((number for number in range(first, first + len(numbers)) if number not in numbers), None)
    if gap is not None or first > 1:
        raise DataError(
            f"images in {where} are not numbered without a gap: there is no {gap if first <= 1 else 0:06d} beside "
            f"{images.ids[numbers[first]]}; run the command that drew them again, it goes on"
        )
    if per_prompt * len(captions) != len(numbers) or not per_prompt:
        raise DataError(
            f"{len(numbers)} images in {where} do not match {len(captions)} prompts: allowed is the same number of "
            f"images of each prompt; give the file that they were drawn from, or draw the missing ones"
        )
    found = []
    for place, number in enumerate(sorted(numbers)):
        index, prompt = numbers[number], place // per_prompt
        name, caption = images.ids[index], captions[prompt]
        if stated.get(name, caption) != caption:
            raise DataError(
                f"image {name} in {where} is of {stated[name]!r}, not of {caption!r}: give the file that the images "
                f"were drawn from"
            )
        found.append(_captioned(images, index, caption, categories[prompt]))
    return found


def _is_object(path: Path) -> bool:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of prompts {path}. Correct the path.")
    return isinstance(parse_json(read_text(path.read_bytes(), str(path)), str(path)), dict)
