"""`davae evaluate --images` and `davae statistics`: numbers of any images, without a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from davae.core.observer import Observer, Silent
from davae.data.image_list import ImageList, open_images
from davae.evaluate.distances.frechet import moments_of
from davae.evaluate.feature_scores import INTERVAL, NOTE, check, describe, score_features
from davae.evaluate.hardware import hardware
from davae.evaluate.metric import FeatureMetric, Moments, Rows
from davae.evaluate.metrics import FEATURES, feature_metrics
from davae.evaluate.results import Results
from davae.evaluate.spaces.catalogue import SPACES
from davae.evaluate.spaces.resize import Protocol
from davae.evaluate.spaces.space import FeatureSpace, Loading
from davae.evaluate.statistics import Reference, open_reference, write_statistics
from davae.evaluate.stream import Extraction, Processes, extract
from davae.report.page import write_report
from davae.run.accelerator import make_accelerator
from davae.run.paths import refuse_claimed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Judging:
    """How images are judged.

    Args:
        metrics: names of `davae.evaluate.metrics.FEATURES`.
        protocol: preprocessing of the Inception family.
        weights: space -> path (or hub name); public weights where a space is not named.
        allow_download: whether weights that are not on this machine may be fetched.
        is_strict: whether files that are no usable image are an error.
        count: how many images there have to be; None takes any number.
        batch_size: images through a network at once.
        folder: where features are kept; None takes the cache folder.
        seed: of everything random.
    """

    metrics: Sequence[str]
    protocol: Protocol = "adm"
    weights: Mapping[str, str] = field(default_factory=dict)
    allow_download: bool = False
    is_strict: bool = False
    count: int | None = None
    batch_size: int = 32
    folder: Path | None = None
    seed: int = 0


def judge(
    images: str | Path,
    reference: str | Path | None,
    judging: Judging,
    out: Path | None = None,
    observer: Observer | None = None,
) -> Results:
    """Judge images by the features of networks.

    Args:
        images: a folder, tar shards, or an npz with `arr_0`.
        reference: the same, or a statistics file; None where no metric compares.
        judging: how.
        out: folder for results.json and report.html, not that of a run; None writes nothing.
        observer: who watches.

    Raises:
        FileNotFoundError: weights are not here.
        ValueError: something cannot be used; the text says what and why.
    """
    metrics = _metrics(judging)
    if out is not None:
        refuse_claimed(out, "the judgement")
    accelerator = make_accelerator("auto")
    watching = observer if observer is not None and accelerator.is_main_process else Silent()
    ours = _opened(open_images(images), judging, watching)
    theirs = None if reference is None else _reference(reference, metrics, judging, watching)
    check(ours, theirs, metrics)
    measurements = score_features(
        ours,
        theirs,
        metrics,
        _opener(judging, watching),
        _extraction(judging, accelerator, watching),
        row=Path(images).resolve().name,
        seed=judging.seed,
    )
    notes = [str(m.protocol[NOTE]) for m in measurements if NOTE in m.protocol] + _notes(ours, theirs)
    for note in dict.fromkeys(notes):
        watching.say(note)
    results = Results(
        run={
            "name": f"{ours.where} against {theirs.where}" if theirs else ours.where,
            "summary": " ".join([f"{len(ours):,} images.", *dict.fromkeys(notes)]),
            "hardware": hardware(),
        },
        measurements=measurements,
    )
    if out is not None and accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        results.save(out / "results.json")
        write_report(out)
    return results


def make_statistics(images: str | Path, out: Path, judging: Judging, observer: Observer | None = None) -> None:
    """Write what the metrics need of a reference into one file.

    Args:
        images: a folder, tar shards, or an npz with `arr_0`.
        out: the file, ending in .npz.
        judging: how.
        observer: who watches.

    Raises:
        FileNotFoundError: weights are not here.
        ValueError: something cannot be used; the text says what and why.
    """
    if out.suffix != ".npz":
        raise ValueError(f"A statistics file ends in .npz; got {out}. Name it {out.with_suffix('.npz')}.")
    metrics = [metric for metric in _metrics(judging) if metric.needs == "reference"]
    if not metrics:
        raise ValueError(f"No metric of {', '.join(judging.metrics)} compares with a reference. Give one that does.")
    accelerator = make_accelerator("auto")
    watching = observer if observer is not None and accelerator.is_main_process else Silent()
    ours = _opened(open_images(images), judging, watching)
    check(ours, Reference(str(images), ours), metrics)
    opener, extraction = _opener(judging, watching), _extraction(judging, accelerator, watching)
    spaces: dict[str, FeatureSpace] = {}
    moments: dict[tuple[str, str], Moments] = {}
    rows: dict[tuple[str, str], Rows] = {}
    for name in dict.fromkeys(metric.space for metric in metrics):
        members = [metric for metric in metrics if metric.space == name]
        spaces[name] = opener(name)
        found = extract(ours, spaces[name], list(dict.fromkeys(m.feature for m in members)), extraction)
        spaces[name].network.to("cpu")
        for metric in members:
            place = (name, metric.feature)
            if metric.takes == "rows":
                rows[place] = found[metric.feature]
            elif place not in moments and accelerator.is_main_process:
                moments[place] = moments_of(found[metric.feature])
    if accelerator.is_main_process:
        write_statistics(out, len(ours), spaces, moments, rows, describe(ours))
        watching.say(f"statistics: {out.resolve()}")


def table_of(results: Results) -> "Table":
    """The table for a terminal: a line a number."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(results.run["name"]), caption_justify="left")
    for heading in ("", "value", "95% interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    for item in results.measurements:
        arrow = {"higher": " ↑", "lower": " ↓", "": ""}[item.better]
        low_high = item.protocol.get(INTERVAL)
        interval = "" if low_high is None else f"{low_high[0]:.5g} to {low_high[1]:.5g}"
        table.add_row(Text(f"{item.column}{arrow}"), f"{item.value:.6g}", interval)
    return table


def _metrics(judging: Judging) -> list[FeatureMetric]:
    if judging.batch_size < 1:
        raise ValueError(f"A batch has at least one image; got {judging.batch_size}. Give --batch-size 1 or more.")
    metrics = feature_metrics(judging.metrics)
    if not metrics:
        raise ValueError(f"There is nothing to measure; got no name in --metrics. Allowed: {', '.join(FEATURES)}.")
    used = {metric.space for metric in metrics}
    for name in judging.weights:
        if name not in SPACES:
            raise ValueError(f"Unknown feature space '{name}'. Allowed: {', '.join(SPACES)}.")
        if name not in used:
            raise ValueError(
                f"Weights for '{name}' have no effect: no metric of {', '.join(judging.metrics)} uses it."
            )
    return metrics


def _opened(images: ImageList, judging: Judging, observer: Observer) -> ImageList:
    """The images, if they are as many and as whole as they have to be."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in images.skipped[:3])
    if images.skipped:
        more = f", and {len(images.skipped) - 3} more" if len(images.skipped) > 3 else ""
        sentence = f"no usable images in {images.where}: {len(images.skipped)} ({listed}{more})"
        if judging.is_strict:
            raise ValueError(f"{sentence}. Replace or remove them, or leave them out by omitting --strict.")
        observer.say(f"left out: {sentence}")
    if judging.count is not None and len(images) != judging.count:
        raise ValueError(
            f"{images.where} has to hold {judging.count:,} images; got {len(images):,}. Draw the missing ones, or "
            f"give another --count."
        )
    return images


def _reference(path: str | Path, metrics: Sequence[FeatureMetric], judging: Judging, observer: Observer) -> Reference:
    if all(metric.needs != "reference" for metric in metrics):
        raise ValueError(f"--reference {path} has no effect: no metric of {', '.join(judging.metrics)} compares.")
    reference = open_reference(path)
    if reference.images is not None:
        _opened(reference.images, Judging(judging.metrics, is_strict=judging.is_strict), observer)
    return reference


def _opener(judging: Judging, observer: Observer) -> Any:
    def open_space(name: str) -> FeatureSpace:
        loading = Loading(judging.weights.get(name), judging.protocol, judging.allow_download, observer.say)
        return SPACES[name](loading)

    return open_space


def _extraction(judging: Judging, accelerator: Accelerator, observer: Observer) -> Extraction:
    processes = Processes(accelerator.process_index, accelerator.num_processes, gather_object)
    device = torch.device(accelerator.device)
    return Extraction(judging.batch_size, device, judging.folder, processes, observer)


def _notes(images: ImageList, reference: Reference | None) -> list[str]:
    """What of the sets themselves makes numbers differ."""
    notes = []
    if len(set(images.sizes)) > 1:
        notes.append(f"The images have {len(set(images.sizes))} sizes; each is resized by itself.")
    if reference is not None and reference.images is not None and set(images.sizes) != set(reference.images.sizes):
        one, other = (f"{s[1]} x {s[0]} px" for s in (images.sizes[0], reference.images.sizes[0]))
        notes.append(f"Images and reference differ in size (the first ones: {one} and {other}).")
    return notes
