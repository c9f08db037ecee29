"""`davae train-judge`: a judge of `solids`, on rendered scenes and their captions."""

from typing import Any

import torch

from davae.models.saving import saving
from davae.run import build
from davae.run.execute import Stage
from davae.run.fit import applied, fit
from davae.run.inputs import settings
from davae.run.record import write_provenance
from davae.run.run import Run

NAME = "judge"


def depends_on(run: Run) -> dict[str, Any]:
    """What the judge depends on."""
    return {
        "judge": settings(run.recipe.judge),
        "data": run.data.train.labelled_fingerprint,
        "seed": run.recipe.seed,
    }


def run(run: Run) -> None:
    """Train, average, save."""
    config = run.recipe.judge
    assert config is not None
    torch.manual_seed(run.recipe.seed)
    judge = build.new_judge(config)
    averages = fit(run, NAME, build.judge_task(judge, config), build.judge_set(run), config, depends_on(run))
    with applied(averages["judge"]):
        judge.eval()
        if run.is_main:
            with saving(run.folder.judge, judge) as folder:
                judge.save_pretrained(folder)
                write_provenance(folder, run.recipe.as_dict(), run.folder.stats, (NAME,))
    run.accelerator.wait_for_everyone()


STAGE = Stage(
    name=NAME,
    verb="train-judge",
    section="judge",
    inputs=depends_on,
    run=run,
    output=lambda run: run.folder.judge,
    trains=True,
)
