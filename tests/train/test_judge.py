"""The training of the judge of `solids`: what it is shown, and what counts."""

import pytest
import torch

from davae.data.solids import ATTRIBUTES, SolidsSource, attributes_of
from davae.models.solids_judge import SolidsJudge, strengths
from davae.run.build import new_judge
from davae.train.judge import JudgeTask
from davae.train.judge_set import JudgeSet
from davae.train.judge_settings import JudgeConfig

SIDE = 32


def training_set(share: float, seed: int = 0) -> JudgeSet:
    source = SolidsSource(40, seed=3)
    said = [attributes_of(caption) for caption in source.captions]
    numbers = {name: torch.tensor([each[name] for each in said]) for name in ATTRIBUTES}
    return JudgeSet(source, numbers, SIDE, share, seed)


def task(**settings: object) -> JudgeTask:
    torch.manual_seed(0)
    config = JudgeConfig(steps=1, batch_size=1, image_size=SIDE, **settings)
    return JudgeTask(SolidsJudge({name: list(words) for name, words in ATTRIBUTES.items()}, SIDE), config)


def test_a_sample_depends_on_its_position_alone() -> None:
    samples = training_set(0.5)
    whole = samples.__getitems__(list(range(12)))
    parts = [samples.__getitems__(list(part)) for part in (range(5), range(5, 12))]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts])), name


def test_what_is_not_enlarged_is_as_rendered_and_the_rest_is_coarser() -> None:
    samples, positions = training_set(0.5), list(range(40))
    batch, rendered = samples.__getitems__(positions), training_set(0.0).__getitems__(positions)
    fineness = batch["fineness"]
    assert 10 < (fineness < 1).sum() < 30
    assert set((fineness * SIDE).tolist()) <= {16.0, 24.0, 32.0}
    difference = (batch["image"].float() - rendered["image"].float()).abs().mean(dim=(1, 2, 3))
    assert torch.equal(difference == 0, fineness == 1)
    assert rendered["fineness"].eq(1).all()


def test_words_are_those_of_the_caption() -> None:
    samples = training_set(0.5)
    batch = samples.__getitems__([4])
    caption = samples.source.captions[samples.order.indices([4])[0]].split()
    assert [ATTRIBUTES[name][int(batch[name])] for name in ("material", "colour", "shape")] == caption[1:]


@pytest.mark.parametrize("names_enlarged", [False, True])
def test_enlarged_images_are_named_only_where_that_is_asked_for(names_enlarged: bool) -> None:
    current = task(names_enlarged=names_enlarged)
    batch = training_set(0.5).__getitems__(list(range(8)))
    judge = current.learners["judge"].network.eval()
    wrong = batch | {name: (batch[name] + (batch["fineness"] < 1).long()) % 3 for name in ATTRIBUTES}
    values, others = (current.loss("judge", judge, given, 0).values for given in (batch, wrong))
    assert torch.equal(values["shape"], others["shape"]) is not names_enlarged
    assert torch.equal(values["fineness"], others["fineness"])


def test_a_loss_is_the_mean_of_its_parts() -> None:
    """Whoever shares a batch, processes or accumulation steps."""
    current, samples = task(), training_set(0.5)
    judge = current.learners["judge"].network.eval()  # batch norms of training look at the whole micro-batch
    whole = current.loss("judge", judge, samples.__getitems__(list(range(8))), 0).total
    parts = [
        current.loss("judge", judge, samples.__getitems__(list(rows)), 0).total for rows in (range(4), range(4, 8))
    ]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 2, rel=1e-5)


def test_a_new_judge_is_told_the_words_of_solids() -> None:
    judge = new_judge(JudgeConfig(steps=1, batch_size=1, image_size=SIDE))
    assert judge.words == ATTRIBUTES
    assert sum(weight.numel() for weight in judge.parameters()) * 4 < 3e6
    judgement = judge(torch.zeros(2, 3, SIDE, SIDE))
    assert {name: logits.shape[1] for name, logits in judgement.logits.items()} == {
        name: len(words) for name, words in ATTRIBUTES.items()
    }
    assert judgement.features.shape == (2, 128) and judgement.fineness.shape == (2,)


def test_strengths_are_those_of_fine_lines() -> None:
    flat, line = torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    line[:, :, :, 7] = 1
    assert strengths(flat).eq(0).all()
    fine, coarse = strengths(line)[0]
    assert fine[:, 7].min() > 4 and fine[:, :3].max() < 0.2 and coarse[:, 7].min() > 1
    smooth = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    assert strengths(smooth)[0, 0, :, 4:12].max() < 0.5
