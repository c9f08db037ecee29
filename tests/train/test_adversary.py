"""The adversarial term and LeCam: formulas by hand, running means as anchors, nothing where it is left out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import davae
from davae.core.losses import hinge_discriminator
from davae.data.solids import SolidsSource
from davae.train.adversary import Adversary
from davae.train.checkpoint import CheckpointStore
from davae.train.feed import Share, feed
from davae.train.image_set import ImageSet
from davae.train.loop import train
from davae.train.objective import AdversarialConfig, TokenizerConfig
from davae.train.reconstructor import UpgradedReconstructor
from davae.train.settings import OptimConfig
from davae.train.tokenizer import TokenizerTask
from tiny_pair import tiny_autoencoder

IMAGES = torch.tensor([2.0, -1.0, 0.25, 0.75])
FAKES = torch.tensor([-2.0, 0.5, 0.5, -1.0])
"""Their means are 0.5 and -0.5. The judge of most tests is the identity: an image is its own answer."""


def adversary(**settings: Any) -> Adversary:
    return Adversary(AdversarialConfig(**{"width": 4} | settings), {}, lambda tensor: tensor)


def judged(judge: Adversary, images: Tensor = IMAGES, fakes: Tensor = FAKES) -> float:
    return float(judge.discriminator_loss(nn.Identity(), images, fakes))


def test_it_begins_at_its_step() -> None:
    judge = adversary(start_step=7)
    assert [judge.runs(step) for step in (0, 6, 7, 8)] == [False, False, True, True]


def test_without_lecam_there_is_the_hinge_alone_and_nothing_is_kept() -> None:
    judge = adversary()
    assert judged(judge) == float(hinge_discriminator(IMAGES, FAKES))
    assert judge.state == {}


def test_lecam_draws_answers_to_the_anchors_of_the_other_kind() -> None:
    judge = adversary(lecam_weight=0.1, lecam_decay=0.0)  # anchors are the batch's means, 0.5 and -0.5
    # real + 0.5 is 2.5, -0.5, 0.75, 1.25; 0.5 - fake is 2.5, 0, 0, 1.5
    lecam = (2.5**2 + 0.75**2 + 1.25**2) / 4 + (2.5**2 + 1.5**2) / 4
    assert judged(judge) == pytest.approx(float(hinge_discriminator(IMAGES, FAKES)) + 0.1 * lecam)
    images, fakes = IMAGES.clone().requires_grad_(), FAKES.clone().requires_grad_()
    plain = adversary().discriminator_loss(nn.Identity(), images, fakes)
    with_lecam = judge.discriminator_loss(nn.Identity(), images, fakes)
    pulls = torch.autograd.grad(with_lecam - plain, [images, fakes])  # anchors stand still
    torch.testing.assert_close(pulls[0], 0.1 * 2 * (images.detach() + 0.5).relu() / 4)
    torch.testing.assert_close(pulls[1], -0.1 * 2 * (0.5 - fakes.detach()).relu() / 4)


def test_anchors_are_running_means_from_zero() -> None:
    judge, hinge = adversary(lecam_weight=1.0, lecam_decay=0.75), float(hinge_discriminator(IMAGES, FAKES))
    for real, fake in ((0.125, -0.125), (0.21875, -0.21875)):  # a quarter of 0.5, then three quarters of that more
        lecam = (IMAGES - fake).relu().square().mean() + (real - FAKES).relu().square().mean()
        assert judged(judge) == pytest.approx(hinge + float(lecam))
        assert judge.state == {"lecam.real": pytest.approx(real), "lecam.fake": pytest.approx(fake)}
    judged(judge, IMAGES + 4)
    assert judge.state["lecam.real"] == pytest.approx(0.75 * 0.21875 + 0.25 * 4.5)
    assert not any(anchor.requires_grad for anchor in judge.state.values())


def test_anchors_are_those_of_all_processes() -> None:
    config = AdversarialConfig(width=4, lecam_weight=1.0, lecam_decay=0.5)
    judge = Adversary(config, {}, lambda mean: (mean + 3.0) / 2)  # the other process answers 3 to everything
    judged(judge)
    assert judge.state == {"lecam.real": 0.5 * 1.75, "lecam.fake": 0.5 * 1.25}


def test_the_autoencoder_is_told_what_the_judge_thinks_and_the_judge_is_left_alone() -> None:
    judge, fakes = adversary(), torch.rand(2, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = judge.generator_loss(fakes)
        assert judge.network(fakes).dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss = judge.generator_loss(fakes)
    assert float(loss.detach()) == pytest.approx(-float(judge.network(fakes).detach().mean()))
    loss.backward()
    assert fakes.grad.abs().max() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in judge.network.parameters())


@pytest.mark.parametrize("setting", [{"lecam_decay": 1.0}, {"lecam_decay": -0.1}])
def test_a_decay_that_is_none_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lecam_decay must be a number in \[0, 1\); got"):
        AdversarialConfig(**setting)


def trained(folder: Path, **settings: Any) -> tuple[TokenizerTask, dict[str, Tensor], list[float]]:
    """A training of 4 steps, what its last checkpoint holds for the task, and all mean answers of the judge."""
    torch.manual_seed(0)
    judge = AdversarialConfig(start_step=1, width=4, optim=OptimConfig(lr=1e-2, betas=(0.5, 0.9)), **settings)
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), scale=2, detail_channels=8)
    config = TokenizerConfig(steps=4, batch_size=4, precision="fp32", adversarial=judge)
    task = TokenizerTask(UpgradedReconstructor(autoencoder, config, seed=0), config)
    answers: list[float] = []
    task.adversary.network.register_forward_hook(lambda _, __, answer: answers.append(float(answer.detach().mean())))
    images, store = ImageSet(SolidsSource(8), 32, seed=0), CheckpointStore(folder, {})
    train(task, lambda start: feed(images, Share(4), start, 4), config, Accelerator(cpu=True), store=store)
    return task, store.latest().groups["task"], answers


def test_a_training_keeps_the_anchors_in_its_checkpoint(tmp_path: Path) -> None:
    _, kept, answers = trained(tmp_path, lecam_weight=0.5, lecam_decay=0.5)
    assert len(answers) == 9  # steps 1 to 3: as a judge of the reconstruction, then in training on both kinds
    for name, means in (("lecam.real", answers[1::3]), ("lecam.fake", answers[2::3])):
        anchor = 0.0
        for mean in means:
            anchor = 0.5 * anchor + 0.5 * mean
        assert float(kept[name]) == pytest.approx(anchor, rel=1e-5)


def test_a_training_without_lecam_keeps_ratios_alone(tmp_path: Path) -> None:
    assert set(trained(tmp_path)[1]) == {"ratio.align", "ratio.adversarial"}


def test_lecam_changes_the_judge(tmp_path: Path) -> None:
    plain, zero, pulled = (
        trained(tmp_path / str(number), **settings)[0].adversary.network.state_dict()
        for number, settings in enumerate(({}, {"lecam_weight": 0.0, "lecam_decay": 0.5}, {"lecam_weight": 5.0}))
    )
    assert all(torch.equal(zero[name], tensor) for name, tensor in plain.items())
    assert not torch.equal(pulled["main.0.weight"], plain["main.0.weight"])
