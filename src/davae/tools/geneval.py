"""`davae evaluate --geneval`: drawn images judged by GenEval, with a page of what failed and why."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from davae.core.files import write_text
from davae.core.observer import Observer, Silent
from davae.data.decode import decode_image
from davae.evaluate.bootstrap import LEVEL, RESAMPLES
from davae.evaluate.geneval.colors import DEFAULT_CLIP, ColorClassifier
from davae.evaluate.geneval.detections import judge_all, read_detections
from davae.evaluate.geneval.detector import DEFAULT_DETECTOR, DetectorJudge
from davae.evaluate.geneval.images import PromptImage, find_images
from davae.evaluate.geneval.looking import look_at_all
from davae.evaluate.geneval.rules import OFFICIAL, Verdict
from davae.evaluate.geneval.summary import OVERALL, Score, Summary, summarize
from davae.evaluate.geneval.words import IMAGES_PER_PROMPT, TASKS
from davae.evaluate.hardware import hardware
from davae.evaluate.results import Measurement, Results
from davae.models.clip import Clip
from davae.models.mask2former import Mask2Former
from davae.report.failures import SHOWN, Failure, FailureGroup, failures_section, thumbnail
from davae.report.page import write_report
from davae.run.accelerator import PATIENCE
from davae.run.paths import refuse_claimed
from davae.train.interrupt import terminable

VERDICTS = "verdicts.jsonl"
_TITLES = {
    OVERALL: "overall",
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "Count",
    "colors": "colours",
    "position": "position",
    "color_attr": "colour of each object",
}


def judge_geneval(
    folder: Path,
    prompts: Path | None = None,
    *,
    detections: Path | None = None,
    detector: str | None = None,
    clip: str | None = None,
    allow_download: bool = False,
    kind: str = "",
    out: Path | None = None,
    seed: int = 0,
    observer: Observer | None = None,
) -> Results:
    """Judge a folder of images by the rules of GenEval.

    Args:
        folder: of the official layout, or drawn by `davae generate`; see `find_images`.
        prompts: the file of prompts that they were drawn from; None is the published 553.
        detections: file of what a detector saw, see `evaluate/geneval/detections.py`; None looks for itself.
        detector: Mask2Former for instances, a folder or a name on the hub, which is fetched; None takes the
            published one where the hub's cache has it.
        clip: CLIP, which names colours; likewise.
        allow_download: whether the published ones may be fetched too.
        kind: "baseline" or "preview" takes what `davae generate` drew beside each image; empty takes the images.
        out: folder for results.json, report.html, verdicts.jsonl and detections.jsonl, not that of a run; None writes
            nothing. A call that was stopped goes on there.
        seed: of the intervals.
        observer: who watches.

    Raises:
        FileNotFoundError: a folder, a file or a network is not there.
        ValueError: images, prompts or detections do not belong together; the text names the first that does not.
    """
    if detections is not None and (detector is not None or clip is not None):
        raise ValueError("--detections says what was seen; --detector and --clip look again. Give one of them.")
    if out is not None:
        refuse_claimed(out, "the judgement")
    images = find_images(folder, prompts, kind)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    observer = (observer or Silent()) if state.is_main_process else Silent()
    if detections is None:
        judge = _judge(detector, clip, allow_download, state.device)
        with terminable():
            seen, identity = look_at_all(images, judge, out, state, observer), judge.identity
    else:
        read = read_detections(detections)
        seen, identity = read.images, {**read.judge, "detections": str(detections)}
    verdicts = judge_all(images, seen)
    results = _results(f"{folder.resolve().name}{kind and f', {kind}'}", images, verdicts, identity, seed)
    if out is not None and state.is_main_process:
        _write(out, results, images, verdicts)
    return results


def _judge(detector: str | None, clip: str | None, allow_download: bool, device: torch.device) -> DetectorJudge:
    """Networks that are named may be fetched; those that are not have to be here already, unless that is allowed."""
    return DetectorJudge(
        Mask2Former.from_pretrained(detector or DEFAULT_DETECTOR, allow_download or detector is not None, device),
        ColorClassifier(Clip.from_pretrained(clip or DEFAULT_CLIP, allow_download or clip is not None, device)),
    )


def _results(
    name: str, images: Sequence[PromptImage], verdicts: Sequence[Verdict], judge: dict[str, Any], seed: int
) -> Results:
    judged = [(image.prompt, verdict.correct) for image, verdict in zip(images, verdicts, strict=True)]
    summary = summarize(judged, seed)
    prompts = summary.overall.prompts
    per_prompt = len(images) / prompts
    is_official = {task: score.prompts for task, score in summary.tasks.items()} == TASKS
    is_official = is_official and per_prompt == IMAGES_PER_PROMPT
    protocol = {
        "judge": judge,
        "rules": asdict(OFFICIAL),
        "images": len(images),
        "prompts": prompts,
        "score": "share of correct images; overall is the mean of the tasks",
        "interval": f"{LEVEL:.0%}, bootstrap over the prompts of each task, {RESAMPLES} resamples, seed {seed}",
    }
    kind = (
        "the official set"
        if is_official
        else f"not the official set of {sum(TASKS.values())} prompts with {IMAGES_PER_PROMPT} images each"
    )
    return Results(
        run={
            "name": f"GenEval of {name}",
            "summary": f"{prompts} prompts, {per_prompt:g} images each: {kind}. The score of a task is the share "
            "of its images that are right, the overall score the mean of the tasks.",
            "hardware": hardware(),
        },
        measurements=_measurements(summary, protocol),
    )


def _measurements(summary: Summary, protocol: dict[str, Any]) -> list[Measurement]:
    def row(name: str, score: Score) -> list[Measurement]:
        values = {
            "score": score.value,
            "95% from": score.low,
            "95% to": score.high,
            "images": score.images,
            "prompts": score.prompts,
        }
        return [Measurement("GenEval", name, column, value, protocol=protocol) for column, value in values.items()]

    scores = {OVERALL: summary.overall, **summary.tasks}
    counted = {"correct images": summary.images, "prompts with a correct image": summary.prompts}
    return [
        *(item for task, score in scores.items() for item in row(_TITLES[task], score)),
        *(
            Measurement("GenEval, counted without tasks", name, "share", value, protocol=protocol)
            for name, value in counted.items()
        ),
    ]


def _write(out: Path, results: Results, images: Sequence[PromptImage], verdicts: Sequence[Verdict]) -> None:
    pairs = list(zip(images, verdicts, strict=True))
    lines = [
        {
            "filename": image.name,
            "tag": image.prompt.task,
            "prompt": image.prompt.text,
            "correct": verdict.correct,
            "reason": "\n".join(verdict.reasons),
        }
        for image, verdict in pairs
    ]
    write_text(out / VERDICTS, "".join(f"{json.dumps(line)}\n" for line in lines))
    results.save(out / "results.json")
    write_report(out, sections=[failures_section(_failures(pairs), VERDICTS)])


def _failures(pairs: Sequence[tuple[PromptImage, Verdict]]) -> list[FailureGroup]:
    groups = []
    for task in TASKS:
        judged = [(image, verdict) for image, verdict in pairs if image.prompt.task == task]
        failed = [(image, verdict) for image, verdict in judged if not verdict.correct]
        shown = [
            Failure(image.name, image.prompt.text, verdict.reasons, _thumbnail(image))
            for image, verdict in failed[:SHOWN]
        ]
        groups.append(FailureGroup(_TITLES[task], shown, len(failed), len(judged)))
    return groups


def _thumbnail(image: PromptImage) -> bytes:
    return thumbnail(decode_image(image.read(), image.name))
