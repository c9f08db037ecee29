"""The section of a page that shows the images that failed, and why."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image

from davae.report.markup import embedded_image, escaped

SHOWN: Final = 48
"""Images of a group; the others are counted."""
_SIDE, _QUALITY = 192, 80


@dataclass(frozen=True)
class Failure:
    """An image that is not what it should be.

    Args:
        name: of the file.
        asked: what it should be.
        reasons: why it is not.
        picture: `thumbnail` of it.
    """

    name: str
    asked: str
    reasons: Sequence[str]
    picture: bytes


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one kind: those that are shown, out of how many, of how many images."""

    title: str
    shown: Sequence[Failure]
    failed: int
    images: int


def failures_section(groups: Sequence[FailureGroup], listed_in: str) -> str:
    """The section; `listed_in` is the file that names all of them. Empty where nothing failed."""
    if not any(group.failed for group in groups):
        return ""
    parts = ["<h2>What failed</h2>", f'<p class="soft">All verdicts are in {escaped(listed_in)}.</p>']
    for group in groups:
        if group.failed:
            more = "" if group.failed == len(group.shown) else f", {len(group.shown)} of them here"
            count = f"<small>{group.failed} of {group.images} images{more}</small>"
            parts.append(
                f"<section><h3>{escaped(group.title)} {count}</h3>"
                f'<div class="failures">{"".join(map(_figure, group.shown))}</div></section>'
            )
    return "\n".join(parts)


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an RGB image."""
    image = image.copy()
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _figure(failure: Failure) -> str:
    picture = embedded_image(failure.picture, failure.asked, failure.name, enlarge_tiny=False)
    reasons = "<br>".join(map(escaped, failure.reasons))
    name = escaped(failure.name).replace("/", "/<wbr>")  # a line may end between folders
    return (
        f"<figure>{picture}<figcaption><b>{escaped(failure.asked)}</b>{reasons}<br><small>{name}</small></figcaption>"
        "</figure>"
    )
