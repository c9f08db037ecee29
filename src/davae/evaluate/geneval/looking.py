"""The pass of a detector over images: shared by processes, kept line by line, and gone on with where it stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import gather_object

from davae.core.files import write_text
from davae.core.observer import Observer
from davae.evaluate.geneval.detections import SeenImage, head_line, judge_one, parse_detections, seen_line
from davae.evaluate.geneval.images import PromptImage

NAME = "detections.jsonl"


class Looker(Protocol):
    """Whoever sees what is in images."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its detections depend on, as JSON values."""

    def look(self, image: PromptImage) -> SeenImage:
        """Everything that is seen in an image."""


def look_at_all(
    images: Sequence[PromptImage], looker: Looker, out: Path | None, state: PartialState, observer: Observer
) -> dict[str, SeenImage]:
    """What is seen in images, by name; the same on every process.

    Args:
        images: all of them, on every process.
        looker: of this process.
        out: folder for `detections.jsonl`, and for the parts of it before; None keeps nothing.
        state: the processes.
        observer: who watches.

    Raises:
        ValueError: `out` holds what another judge saw.
    """
    seen = {} if out is None else _standing(out, images, looker)
    _keep(seen, images, looker, out, state)
    missing = [image for image in images if image.name not in seen]
    mine = missing[state.process_index :: state.num_processes]
    part = None if out is None else out / f"detections-{state.process_index}.part.jsonl"
    seen |= {item.image: item for item in gather_object(_look(mine, looker, part, observer))}
    _keep(seen, images, looker, out, state)
    return seen


def _keep(
    seen: Mapping[str, SeenImage],
    images: Sequence[PromptImage],
    looker: Looker,
    out: Path | None,
    state: PartialState,
) -> None:
    """Write what was seen as one file, in the order of the images, once all processes have read what stood there."""
    state.wait_for_everyone()
    if out is not None and state.is_main_process:
        lines = [seen_line(seen[image.name]) for image in images if image.name in seen]
        write_text(out / NAME, "".join([head_line(looker.identity), *lines]))
        for path in _parts(out):
            path.unlink()
    state.wait_for_everyone()


def _look(images: Sequence[PromptImage], looker: Looker, part: Path | None, observer: Observer) -> list[SeenImage]:
    found: list[SeenImage] = []
    if part is not None and images:
        write_text(part, head_line(looker.identity))
    observer.begin("detect", len(images))
    for image in images:
        found.append(looker.look(image))
        if part is not None:
            with part.open("a", encoding="utf-8") as stream:
                stream.write(seen_line(found[-1]))
        observer.advance(len(found))
    observer.end()
    return found


def _standing(out: Path, images: Sequence[PromptImage], looker: Looker) -> dict[str, SeenImage]:
    """What an earlier call saw of these very images."""
    by_name = {image.name: image for image in images}
    seen: dict[str, SeenImage] = {}
    for path in (out / NAME, *_parts(out)):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a process that was killed leaves half a line
        if not whole:
            continue
        detections = parse_detections(whole, str(path))
        if detections.judge != looker.identity:
            raise ValueError(
                f"{path} holds what another judge saw. Give another folder, or judge by it with --detections {path}."
            )
        known = {name: item for name, item in detections.images.items() if name in by_name}
        seen |= {name: item for name, item in known.items() if _fits(by_name[name], item)}
    return seen


def _fits(image: PromptImage, seen: SeenImage) -> bool:
    """Whether a line is of the image as it is now, with the colours that its prompt asks for."""
    try:
        judge_one(image, seen)
    except ValueError:
        return False
    return True


def _parts(out: Path) -> list[Path]:
    return sorted(out.glob("detections-*.part.jsonl"))
