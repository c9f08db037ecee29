"""Which images a folder of `davae generate` holds: of which prompts, seeds and settings. Calls add to it.

An image is what it was drawn from: a call draws those that are not there yet, under the next numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from davae.core.state import StateError, parse_json, read_json, write_json
from davae.data.drawn_folder import ALBUM
from davae.run.writer import LOCK
from davae.tools.generate.job import Job
from davae.tools.generate.settings import digest

_FORMAT = 2


@dataclass(frozen=True)
class Series:
    """Images with consecutive numbers and seeds, drawn with the same settings.

    Args:
        first: number of the first one.
        seed: of the first one.
        captions: prompt of each.
        settings: all else that they depend on, and what is kept of each, as JSON values.
    """

    first: int
    seed: int
    captions: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def drawn_from(self) -> dict[tuple[str, int], int]:
        """(prompt, seed) -> number."""
        return {(caption, self.seed + i): self.first + i for i, caption in enumerate(self.captions)}


@dataclass(frozen=True)
class Album:
    """What a folder holds, or is about to.

    Args:
        form: of the images.
        shard_size: images a tar shard; None where they are files.
        series: in the order of their numbers.
    """

    form: Literal["png", "jpg"]
    shard_size: int | None
    series: tuple[Series, ...] = ()
    format_version: int = _FORMAT

    def save(self, folder: Path) -> None:
        """Say in the folder what it holds."""
        write_json(folder / ALBUM, asdict(self), indent=1, sort_keys=True)

    def with_job(self, job: Job, device: torch.device) -> tuple["Album", list[Series]]:
        """The album with all images of a job, and the series in which those are.

        Those that are in it by prompt, seed and settings stay where they are; others get the next numbers.
        """
        settings = job.content(device)
        alike = [series for series in self.series if series.settings == settings]
        known = {source: series for series in alike for source in series.drawn_from}
        asked: dict[int, Series] = {}
        added: list[tuple[str, int]] = []
        for index, caption in enumerate(job.captions):
            source = (caption, job.settings.seed + index)
            if source in known:
                asked[known[source].first] = known[source]
            else:
                added.append(source)
        new: list[Series] = []
        for seed, captions in _runs(added):
            new.append(Series(self._end((*self.series, *new)), seed, captions, settings))
        return replace(self, series=(*self.series, *new)), [*asked.values(), *new]

    def _end(self, series: tuple[Series, ...]) -> int:
        """The next number; a shard is of one series."""
        if not series:
            return 0
        end = series[-1].first + len(series[-1].captions)
        return end if self.shard_size is None else -(-end // self.shard_size) * self.shard_size


def _runs(images: Sequence[tuple[str, int]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(first seed, prompts) of images (prompt, seed) with consecutive seeds."""
    for _, run in groupby(enumerate(images), lambda entry: entry[1][1] - entry[0]):
        group = [image for _, image in run]
        yield group[0][1], tuple(caption for caption, _ in group)


def open_album(folder: Path, job: Job, device: torch.device) -> Album:
    """What a folder holds that a job is to be drawn into.

    Raises:
        ValueError: something that is not of this library lies there, its album is damaged, or it keeps images in
            another form than the job.
    """
    settings = job.settings
    asked = Album(settings.form, settings.shard_size if settings.shards else None)
    others = [path for path in folder.iterdir() if not path.name.startswith(LOCK)] if folder.exists() else []
    if not others:
        return asked
    path = folder / ALBUM
    if not path.exists():
        raise ValueError(
            f"{folder} holds something that davae did not write: there is no {ALBUM} in it. Give a new or an empty "
            f"folder."
        )
    remedy = (
        f"It says which images lie there. Put a copy of it back, or give another folder; {folder} stays as it is."
    )
    try:
        stored = read_json(path, dict[str, Any], remedy)
        found = _of_earlier_version(folder, stored, job, device) if "format_version" not in stored else None
        album = found or parse_json(path, stored, Album, remedy)
    except StateError:
        if others == [path]:  # nothing was drawn
            return asked
        raise
    if (album.form, album.shard_size) != (asked.form, asked.shard_size):
        raise ValueError(
            f"{folder} keeps images as {_described(album)}; got {_described(asked)}. Ask for the same, or give "
            f"another folder."
        )
    return album


def _described(album: Album) -> str:
    return f"{album.form} files" if album.shard_size is None else f"{album.form} in shards of {album.shard_size}"


def _of_earlier_version(folder: Path, stored: Mapping[str, Any], job: Job, device: torch.device) -> Album | None:
    """The album of a folder that an earlier version wrote, which went on with the same job alone."""
    if "first_prompt" not in stored:
        return None
    settings = job.settings
    now = {
        **job.facts(device),
        "seed": settings.seed,
        "count": settings.count,
        "form": settings.form,
        "shards": settings.shards,
        "prompts": f"{len(job.prompts)}, {digest(job.prompts)}",
        "kinds": job.kinds,
        **({"shard_size": settings.shard_size} if settings.shards else {}),
    }
    places = ("pipeline", "baseline", "source", "first_prompt")
    changed = sorted(key for key in {*stored, *now} - {*places} if stored.get(key) != now.get(key))
    for name, source in (("source", job.source), ("baseline", job.baseline)):
        before = stored.get(name)
        same = before is None if source is None else isinstance(before, Mapping) and source.was(before)
        if not same:
            changed.append(name)
    if changed:
        raise ValueError(
            f"{folder} holds images of other settings ({', '.join(changed)}), by an earlier version, which did not "
            f"say enough to add to them. Use the old settings to go on, or give another folder."
        )
    series = Series(0, settings.seed, tuple(job.captions), job.content(device))
    return Album(settings.form, settings.shard_size if settings.shards else None, (series,))
