"""What images to be judged were asked to show: their captions, or the class that the name of their folder is."""

from collections.abc import Sequence
from pathlib import Path

from davae.data.captioned_images import captioned_images
from davae.data.errors import DataError
from davae.data.image_list import ImageList
from davae.data.prompt_list import read_prompts


def asked_of(images: ImageList, prompts: Path | None = None) -> list[str]:
    """Caption or class name of each image, in their order.

    Args:
        images: of `open_images`.
        prompts: file of the captions, as many images of each in order; None takes what the folder itself says (see
            `captioned_images`), or else the names of the folders that the images lie in.

    Raises:
        DataError: an image has no caption, or images and captions do not match; the text says what is allowed.
    """
    where = Path(images.where)
    is_folder = where.is_dir() and not any(where.glob("*.tar"))
    if prompts is None and is_folder and all("/" in name for name in images.ids):
        return [name.partition("/")[0] for name in images.ids]
    if is_folder:
        captions = {image.name: image.caption for image in captioned_images(where, prompts)}
        if absent := [name for name in images.ids if name not in captions]:
            raise DataError(f"image {absent[0]} of {where} has no caption: take it away, or caption it")
        return [captions[name] for name in images.ids]
    if prompts is None:
        raise DataError(f"nothing says what the images of {where} are of: got no captions; give --prompts FILE")
    return _in_order(read_prompts(prompts), images)


def _in_order(captions: Sequence[str], images: ImageList) -> list[str]:
    each, rest = divmod(len(images), len(captions))
    if rest or not each:
        raise DataError(
            f"{len(images)} images of {images.where} do not match {len(captions)} prompts: allowed is the same "
            f"number of images of each prompt; give the file that they were drawn from"
        )
    return [captions[number // each] for number in range(len(images))]
