"""The rules against verdicts of the official judge."""

import json
from typing import Any

import pytest

from conftest import GOLDEN
from davae.evaluate.geneval.prompts import Item, Prompt, parse_prompt
from davae.evaluate.geneval.rules import Detection, Thresholds, judge, kept, overlap, relations
from davae.evaluate.geneval.summary import summarize
from davae.evaluate.geneval.words import CLASSES, COCO_NAMES, TASKS

_OPTIONS = {"threshold": "score", "counting_threshold": "counting_score", "position_threshold": "position"}


def _golden(name: str) -> Any:
    return json.loads((GOLDEN / "eval" / name).read_text())


@pytest.mark.parametrize("case", _golden("geneval_cases.json")["cases"], ids=lambda case: case["id"])
def test_the_verdict_is_the_official_one(case: dict[str, Any]) -> None:
    prompt = parse_prompt(case["metadata"], case["id"])
    options = Thresholds(**{_OPTIONS.get(key, key): value for key, value in case["options"].items()})
    objects = {name: [Detection(tuple(row[:4]), row[4]) for row in rows] for name, rows in case["detections"].items()}
    verdict = judge(prompt, objects, lambda name, number: case["colors"][name][number], options)
    assert verdict.correct == case["expected"]["correct"]
    assert "\n".join(verdict.reasons) == case["expected"]["reason"]
    rows = {
        name: [case["detections"][name][i] for i in kept(seen, prompt.task, options)]
        for name, seen in objects.items()
    }
    assert {name: row for name, row in rows.items() if row} == case["expected"]["kept"]


def test_relations_and_overlaps_are_the_official_ones() -> None:
    units = _golden("geneval_units.json")
    for unit in units["relative_position"]:
        assert set(relations(unit["a"], unit["b"], unit["position_threshold"])) == set(unit["relations"]), unit
    for unit in units["compute_iou"]:
        assert overlap(unit["a"], unit["b"]) == pytest.approx(unit["iou"], abs=1e-6)


@pytest.mark.parametrize("number", [0, 1])
def test_the_summary_is_the_official_one(number: int) -> None:
    official = _golden("geneval_summary.json")["sets"][number]
    summary = summarize([(parse_prompt(image["metadata"], ""), image["correct"]) for image in official["images"]])
    want = official["expected"]
    assert f"{summary.overall.value:.5f}" == f"{want['overall']:.5f}"
    assert (summary.overall.images, summary.overall.prompts) == (want["images"], want["prompts"])
    assert round(100 * summary.images, 2) == want["percent_correct_images"]
    assert round(100 * summary.prompts, 2) == want["percent_correct_prompts"]
    tasks = {task: [round(score.value * score.images), score.images] for task, score in summary.tasks.items()}
    assert tasks == want["tasks"]


def test_colours_are_asked_for_only_where_the_prompt_colours() -> None:
    asked = []

    def color_of(name: str, number: int) -> str:
        asked.append((name, number))
        return "red"

    include = [{"class": "cup", "count": 1, "color": "red"}, {"class": "dog", "count": 1}]
    prompt = parse_prompt({"tag": "color_attr", "prompt": "x", "include": include}, "")
    box = (0.0, 0.0, 9.0, 9.0)
    cups = [Detection(box, 0.4), Detection(box, 0.8)]
    assert judge(prompt, {"cup": cups, "dog": [Detection(box, 0.9)]}, color_of).correct
    assert asked == [("cup", 1)]


def test_an_interval_holds_its_value_and_shrinks_with_prompts() -> None:
    def drawn(prompts: int) -> list[tuple[Prompt, bool]]:
        asked = [Prompt(str(number), "counting", (Item("cup", 2),)) for number in range(prompts)]
        return [(prompt, image < number % 5) for number, prompt in enumerate(asked) for image in range(4)]

    few, many = (summarize(drawn(prompts)).tasks["counting"] for prompts in (20, 320))
    assert few.value == many.value == 0.5
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.4 * (few.high - few.low)
    assert summarize(drawn(20)).overall == few  # the one task


def test_no_image_has_no_score() -> None:
    with pytest.raises(ValueError, match="got none"):
        summarize([])


def test_the_published_lists_have_their_lengths() -> None:
    assert sum(TASKS.values()) == 553
    assert len(set(CLASSES)) == 80
    assert set(COCO_NAMES.values()) < set(CLASSES)
