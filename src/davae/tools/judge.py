"""`davae evaluate --images` and `davae statistics`: numbers of any images, without a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

from davae.core.observer import Observer, Silent
from davae.data.asked import asked_of
from davae.data.captioned_images import captioned_images
from davae.data.image_list import ImageList, open_images
from davae.data.mjhq import categories_by_id
from davae.evaluate.categories import OVERALL, Category, by_category
from davae.evaluate.distances.frechet import moments_of
from davae.evaluate.feature_files import compare_features, is_feature_file, open_features
from davae.evaluate.feature_scores import check, describe, score_features
from davae.evaluate.hardware import hardware
from davae.evaluate.metric import FeatureMetric, Moments, Rows
from davae.evaluate.metrics import FEATURES, VECTORS, feature_metrics
from davae.evaluate.results import INTERVAL, NOTE, Measurement, Results
from davae.evaluate.spaces import inception
from davae.evaluate.spaces.catalogue import SPACES
from davae.evaluate.spaces.resize import Protocol
from davae.evaluate.spaces.space import FeatureSpace, Loading
from davae.evaluate.statistics import Reference, open_reference, write_statistics
from davae.evaluate.stream import Extraction, extract
from davae.report.page import write_report
from davae.run.accelerator import make_accelerator, processes_of
from davae.run.paths import refuse_claimed

if TYPE_CHECKING:
    from rich.table import Table


_ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


@dataclass(frozen=True)
class Judging:
    """How images are judged.

    Args:
        metrics: names of `davae.evaluate.metrics.FEATURES`; where files of features are compared, of `VECTORS`.
        protocols: preprocessings of the Inception family; of several, every metric of it is measured by each.
        weights: space -> path (or hub name); public weights where a space is not named.
        allow_download: whether weights that are not on this machine may be fetched.
        is_strict: whether files that are no usable image are an error.
        count: how many images there have to be; None takes any number.
        batch_size: images through a network at once.
        folder: where features are kept; None takes the cache folder.
        kind: "baseline" or "preview" judges what `davae generate` drew beside each image; empty judges the images.
        categories: MJHQ-30K's metadata, for numbers of each category and of all; None measures all together.
        prompts: file of what the images were drawn from, for metrics that ask whether they show it; None takes what
            their folder says.
        seed: of everything random.
    """

    metrics: Sequence[str]
    protocols: Sequence[Protocol] = ("adm",)
    weights: Mapping[str, str] = field(default_factory=dict)
    allow_download: bool = False
    is_strict: bool = False
    count: int | None = None
    batch_size: int = 32
    folder: Path | None = None
    kind: str = ""
    categories: Path | None = None
    prompts: Path | None = None
    seed: int = 0


def judge(
    images: str | Path,
    reference: str | Path | None,
    judging: Judging,
    out: Path | None = None,
    observer: Observer | None = None,
) -> Results:
    """Judge images by the features of networks; or features, which somebody's network made, by themselves.

    Args:
        images: a folder, tar shards, or an npz with `arr_0`; or a file of features, see
            `davae.evaluate.feature_files`.
        reference: the same, or a statistics file; None where no metric compares.
        judging: how.
        out: folder for results.json and report.html, not that of a run; None writes nothing.
        observer: who watches.

    Raises:
        FileNotFoundError: weights are not here.
        ValueError: something cannot be used; the text says what and why.
    """
    if out is not None:
        refuse_claimed(out, "the judgement")
    accelerator = make_accelerator("auto")
    watching = observer if observer is not None and accelerator.is_main_process else Silent()
    if is_feature_file(images):
        results = _judge_features(images, reference, judging)
    else:
        results = _judge_images(images, reference, judging, accelerator, watching)
    for note in results.run["notes"]:
        watching.say(note)
    if out is not None and accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        results.save(out / "results.json")
        write_report(out)
    return results


def _judge_images(
    images: str | Path,
    reference: str | Path | None,
    judging: Judging,
    accelerator: Accelerator,
    observer: Observer,
) -> Results:
    metrics = _metrics(judging)
    ours = _opened(open_images(images, judging.kind), judging, observer)
    theirs = None if reference is None else _reference(reference, metrics, judging, observer)
    asked = _asked(ours, metrics, judging)
    check(ours, theirs, metrics, asked)
    categories = _categories(Path(images), ours, theirs, judging)
    measurements: list[Measurement] = []
    for protocol in judging.protocols:
        measurements += score_features(
            ours,
            theirs,
            [m for m in metrics if protocol == judging.protocols[0] or m.space == inception.NAME],
            _opener(judging, protocol, observer),
            _extraction(judging, accelerator, observer),
            row=Path(images).resolve().name + (judging.kind and f", {judging.kind}"),
            group=_group(protocol, judging),
            seed=judging.seed,
            categories=categories,
            asked=asked,
        )
    said = [item for item in measurements if NOTE in item.protocol and (not categories or item.row == OVERALL)]
    of_sets = _notes(ours, theirs)
    if categories:
        of_sets.append(
            "A category has fewer images than the whole; compare its numbers with those of categories alone."
        )
    notes = [str(item.protocol[NOTE]) for item in said]
    against = None if theirs is None else theirs.where
    return _results(ours.where, against, [f"{len(ours):,} images.", *of_sets], notes, measurements)


def _judge_features(images: str | Path, reference: str | Path | None, judging: Judging) -> Results:
    metrics = feature_metrics(judging.metrics, VECTORS)
    if reference is None or not is_feature_file(reference):
        raise ValueError(
            f"{images} holds features, which compare with other features; got {reference or 'no reference'}. Give "
            f"--reference a file of them."
        )
    ours, theirs = open_features(images), open_features(reference)
    if judging.count is not None and len(ours.rows) != judging.count:
        raise ValueError(
            f"{images} has to hold {judging.count:,} vectors; got {len(ours.rows):,}. Make the missing ones, or give "
            f"another --count."
        )
    measurements = compare_features(ours, theirs, metrics, Path(images).stem, judging.seed)
    notes = [str(item.protocol[NOTE]) for item in measurements if NOTE in item.protocol]
    sets = [f"{len(ours.rows):,} vectors of {ours.rows.shape[1]:,} numbers."]
    return _results(ours.where, theirs.where, sets, notes, measurements)


def _results(
    ours: str, theirs: str | None, sets: Sequence[str], notes: Sequence[str], measurements: list[Measurement]
) -> Results:
    """What was found; of the sets the page says it above all, of a number (`notes`) beneath its table."""
    run = {
        "name": f"{ours} against {theirs}" if theirs else ours,
        "summary": " ".join(sets),
        "notes": list(dict.fromkeys([*notes, *sets[1:]])),
        "hardware": hardware(),
    }
    return Results(run=run, measurements=measurements)


def _group(protocol: Protocol, judging: Judging) -> str:
    """Title of a table."""
    title = "Images by category" if judging.categories else "Images"
    return title if len(judging.protocols) == 1 else f"{title}, {protocol}"


def _categories(place: Path, images: ImageList, reference: Reference | None, judging: Judging) -> list[Category]:
    """Which images each row is of: drawn ones by their id or by the number of their prompt, real ones by their id."""
    if judging.categories is None:
        return []
    if reference is None or reference.images is None:
        raise ValueError("Numbers by category need the images of the reference; got none. Give the folder of them.")
    drawn = {image.name: image.category for image in captioned_images(place, judging.categories, judging.kind)}
    real = categories_by_id(reference.images.ids, judging.categories)
    if not all(drawn.values()):
        raise ValueError(
            f"{judging.categories} has no categories; allowed is an object from ids to entries with prompt and "
            f"category. Take MJHQ-30K's meta_data.json."
        )
    return by_category([drawn[name] for name in images.ids], real)


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
    opener = _opener(judging, judging.protocols[0], watching)
    extraction = _extraction(judging, accelerator, watching)
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
    """The table for a terminal: a line a number, or, where there are several rows, a line a row."""
    from rich.table import Table
    from rich.text import Text

    rows = dict.fromkeys((item.group, item.row) for item in results.measurements)
    columns = {item.column: f"{item.column}{_ARROWS[item.better]}" for item in results.measurements}
    table = Table(title=Text(results.run["name"]), caption=Text(_protocol(results)), caption_justify="left")
    table.add_column("")
    if len(rows) > 1:
        cells = {(item.group, item.row, item.column): f"{item.value:.6g}" for item in results.measurements}
        has_groups = len({group for group, _ in rows}) > 1
        for heading in columns.values():
            table.add_column(Text(heading), justify="right")
        for group, row in rows:
            shown = f"{group}: {row}" if has_groups else row
            table.add_row(Text(shown), *(cells.get((group, row, column), "") for column in columns))
        return table
    for heading in ("value", "95% interval"):
        table.add_column(heading, justify="right")
    for item in results.measurements:
        low_high = item.protocol.get(INTERVAL)
        interval = "" if low_high is None else f"{low_high[0]:.5g} to {low_high[1]:.5g}"
        table.add_row(Text(columns[item.column]), f"{item.value:.6g}", interval)
    return table


def _protocol(results: Results) -> str:
    """What the numbers depend on most: how many images, which network, how they were resized for it."""
    protocols = [item.protocol for item in results.measurements]
    sets = [_counts(p) for p in protocols if isinstance(p.get("images"), Mapping)]
    networks = dict.fromkeys(
        f"{p['extractor']} (weights {p['weights'][:8]}); {p['preprocessing']}" for p in protocols if "weights" in p
    )
    said = [*([max(sets, key=len)] if sets else []), *networks]
    return "; ".join(said) + "." if said else ""


def _counts(protocol: Mapping[str, Any]) -> str:
    counts = [protocol[side]["count"] for side in ("images", "reference") if side in protocol]
    words = [f"{count:,}" if isinstance(count, int) else f"images, whose number is {count}" for count in counts]
    return " images against ".join(words) + (" images" if len(words) == 1 else "")


def _metrics(judging: Judging) -> list[FeatureMetric]:
    if judging.batch_size < 1:
        raise ValueError(f"A batch has at least one image; got {judging.batch_size}. Give --batch-size 1 or more.")
    metrics = feature_metrics(judging.metrics)
    if not metrics:
        raise ValueError(f"There is nothing to measure; got no name in --metrics. Allowed: {', '.join(FEATURES)}.")
    used = {metric.space for metric in metrics}
    if len(judging.protocols) > 1 and inception.NAME not in used:
        raise ValueError(
            f"{' and '.join(judging.protocols)} are protocols of Inception's features: no metric of "
            f"{', '.join(judging.metrics)} takes them. Leave out --protocol."
        )
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


def _asked(images: ImageList, metrics: Sequence[FeatureMetric], judging: Judging) -> list[str] | None:
    """Caption or class name of each image, where a metric takes them."""
    if any(metric.needs == "prompts" for metric in metrics):
        return asked_of(images, judging.prompts)
    if judging.prompts is not None:
        raise ValueError(
            f"--prompts {judging.prompts} has no effect: no metric of {', '.join(judging.metrics)} looks at captions."
        )
    return None


def _opener(judging: Judging, protocol: Protocol, observer: Observer) -> Any:
    def open_space(name: str) -> FeatureSpace:
        loading = Loading(judging.weights.get(name), protocol, judging.allow_download, observer.say)
        return SPACES[name](loading)

    return open_space


def _extraction(judging: Judging, accelerator: Accelerator, observer: Observer) -> Extraction:
    device = torch.device(accelerator.device)
    return Extraction(judging.batch_size, device, judging.folder, processes_of(accelerator), observer)


def _notes(images: ImageList, reference: Reference | None) -> list[str]:
    """What of the sets themselves makes numbers differ."""
    notes = []
    if len(set(images.sizes)) > 1:
        notes.append(f"The images have {len(set(images.sizes))} sizes; each is resized by itself.")
    if reference is not None and reference.images is not None and set(images.sizes) != set(reference.images.sizes):
        one, other = (f"{s[1]} x {s[0]} px" for s in (images.sizes[0], reference.images.sizes[0]))
        notes.append(f"Images and reference differ in size (the first ones: {one} and {other}).")
    return notes
