"""The score of GenEval: a mean over images in each task, the mean of the tasks, and how far they can be trusted."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from davae.evaluate.bootstrap import interval, resampled_means
from davae.evaluate.geneval.prompts import Prompt
from davae.evaluate.geneval.words import TASKS

OVERALL: Final = "overall"


@dataclass(frozen=True)
class Score:
    """A share of correct images, between the ends of its 95% interval.

    Args:
        value: in [0, 1].
        low: lower end, from other prompts of the same kind.
        high: upper end.
        images: that were judged.
        prompts: that they are of.
    """

    value: float
    low: float
    high: float
    images: int
    prompts: int


@dataclass(frozen=True)
class Summary:
    """What a set of judged images comes to.

    Args:
        tasks: task -> its score, in the published order; those that the set has.
        overall: mean of the tasks, each counting alike.
        images: share of the images that are correct.
        prompts: share of the prompts of which any image is.
    """

    tasks: dict[str, Score]
    overall: Score
    images: float
    prompts: float


def summarize(verdicts: Sequence[tuple[Prompt, bool]], seed: int = 0) -> Summary:
    """The score of judged images.

    Args:
        verdicts: of each image, what was asked and whether it is correct. Equal prompts are one, wherever they stand.
        seed: of the intervals, which resample the prompts of each task.

    Raises:
        ValueError: there is no image.
    """
    if not verdicts:
        raise ValueError("GenEval needs images; got none. Draw them first.")
    by_prompt: dict[Prompt, list[bool]] = defaultdict(list)
    for prompt, correct in verdicts:
        by_prompt[prompt].append(correct)
    tasks, means = {}, []
    for task in TASKS:
        answers = [found for prompt, found in by_prompt.items() if prompt.task == task]
        if answers:
            sums, counts = (np.array([of(found) for found in answers], float) for of in (sum, len))
            means.append(resampled_means(sums, counts, seed, f"geneval {task}"))
            tasks[task] = Score(
                float(sums.sum() / counts.sum()), *interval(means[-1]), int(counts.sum()), len(answers)
            )
    value = float(np.mean([score.value for score in tasks.values()]))
    low, high = interval(np.mean(means, axis=0))
    return Summary(
        tasks,
        Score(value, low, high, len(verdicts), len(by_prompt)),
        images=sum(correct for _, correct in verdicts) / len(verdicts),
        prompts=sum(any(found) for found in by_prompt.values()) / len(by_prompt),
    )
