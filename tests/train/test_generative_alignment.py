"""The generative term: base and detail through one frozen transformer, noised alike."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import davae
from davae.backbones.features import BlockFeatures
from davae.core.layout import LatentLayout
from davae.core.randomness import normal
from davae.core.scaling import LatentScaling
from davae.models.declared_scaling import scaling_of
from davae.train.batch import Batch
from davae.train.generative_alignment import Features, GenerativeAlignment
from davae.train.objective import GenerativeAlignConfig, TokenizerConfig
from davae.train.reconstructor import UpgradedReconstructor
from davae.train.settings import OptimConfig
from davae.train.tokenizer import TokenizerTask
from tiny_pair import tiny_autoencoder, tiny_transformer

LAYOUT = LatentLayout(4, 8)
WEIGHT = nn.Parameter(torch.zeros(1))


def positions_as_tokens(noisy: Tensor, time: Tensor) -> Tensor:
    """A transformer that hands on what it is given."""
    return noisy.flatten(2).transpose(1, 2)


def aligned(
    features: Features = positions_as_tokens, scaling: LatentScaling | None = None, **settings: Any
) -> GenerativeAlignment:
    return GenerativeAlignment(GenerativeAlignConfig(**settings), features, LAYOUT, scaling, seed=5)


def frozen() -> BlockFeatures:
    torch.manual_seed(1)
    return BlockFeatures(tiny_transformer(), 1)


def test_a_detail_whose_groups_are_the_base_is_seen_as_the_base() -> None:
    base = torch.randn(3, 4, 4, 4)
    apart = torch.randn(3, 8, 4, 4)
    same = base.repeat_interleave(2, dim=1) + torch.tensor([1.0, -1.0] * 4).view(1, -1, 1, 1)  # means of pairs
    term = aligned(frozen()).term(base, same, [0, 1, 2], WEIGHT)
    assert float(term.loss) == pytest.approx(0, abs=1e-5)
    assert float(aligned(frozen()).term(base, apart, [0, 1, 2], WEIGHT).loss) > 1e-3


def test_the_term_is_the_cosine_of_tokens_by_hand() -> None:
    base, detail, places = torch.randn(2, 4, 3, 3), torch.randn(2, 8, 3, 3), [7, 8]
    scaling = LatentScaling((0.5,) * 4, (2.0,) * 4)
    found = aligned(scaling=scaling, time_mean=0.3, time_std=0.5, weight=0.7).term(base, detail, places, WEIGHT)
    time = torch.sigmoid(0.3 + 0.5 * normal(5, "generative time", places, ())).view(2, 1, 1, 1)
    noise = normal(5, "generative noise", places, (4, 3, 3))
    means = detail.view(2, 4, 2, 3, 3).mean(dim=2)
    seen, target = (time * 2 * (latent - 0.5) + (1 - time) * noise for latent in (means, base))
    assert float(found.loss) == pytest.approx(float((1 - F.cosine_similarity(seen, target, dim=1)).mean()), rel=1e-5)
    assert (found.name, found.weight, found.parameter) == ("generative", 0.7, WEIGHT)
    assert aligned(adaptive=False).term(base, detail, places, WEIGHT).parameter is None


def test_noise_and_time_belong_to_the_position() -> None:
    base, detail = torch.randn(2, 4, 4, 4), torch.randn(2, 8, 4, 4)
    alignment = aligned(frozen())
    together = alignment.term(base, detail, [3, 4], WEIGHT).loss
    each = [alignment.term(base[[row]], detail[[row]], [3 + row], WEIGHT).loss for row in (0, 1)]
    torch.testing.assert_close(together, torch.stack(each).mean())
    assert float(alignment.term(base, detail, [5, 6], WEIGHT).loss) != pytest.approx(float(together), rel=1e-4)


def test_the_detail_is_moved_and_neither_base_nor_transformer() -> None:
    base, detail = torch.randn(2, 4, 4, 4, requires_grad=True), torch.randn(2, 8, 4, 4, requires_grad=True)
    features = frozen()
    aligned(features).term(base.detach(), detail, [0, 1], WEIGHT).loss.backward()
    assert detail.grad.abs().max() > 0
    assert all(weight.grad is None for weight in features.transformer.parameters())


def task(**settings: Any) -> TokenizerTask:
    torch.manual_seed(0)
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), scale=2, detail_channels=8)
    fast = OptimConfig(lr=3e-3, betas=(0.9, 0.99))
    defaults: dict[str, Any] = {"steps": 40, "batch_size": 4, "precision": "fp32", "optim": fast, "align_weight": 0.0}
    config = TokenizerConfig(**defaults | {"detail_dropout": 0.0, "kl_weight": 0.0} | settings)
    generative = None
    if config.generative_alignment is not None:
        scaling = scaling_of(autoencoder.base_vae)
        generative = GenerativeAlignment(config.generative_alignment, frozen(), LAYOUT, scaling, seed=0)
    return TokenizerTask(UpgradedReconstructor(autoencoder, config, seed=0), config, generative=generative)


def batch(*positions: int) -> Batch:
    images = torch.randint(0, 256, (len(positions), 3, 32, 32), generator=torch.Generator().manual_seed(2))
    return {"image": images.to(torch.uint8), "position": torch.tensor(positions)}


def test_it_pulls_as_hard_as_its_weight_says() -> None:
    pulls = []
    for settings in ({}, {"generative_alignment": GenerativeAlignConfig(weight=0.5, block=1)}):
        subject = task(**settings)
        found = subject.loss("autoencoder", subject.reconstructor.network, batch(0, 1, 2, 3), 0)
        pulls.append(torch.autograd.grad(found.total, subject.reconstructor.latent_weight)[0])
        assert ("generative" in found.values, "generative_weight" in found.values) == (bool(settings),) * 2
    assert float((pulls[1] - pulls[0]).norm() / pulls[0].norm()) == pytest.approx(0.5, rel=0.05)


def test_training_by_it_makes_the_detail_look_like_the_base() -> None:
    subject = task(generative_alignment=GenerativeAlignConfig(weight=5.0, block=1, adaptive=False))
    network = subject.reconstructor.network
    optimiser = torch.optim.Adam([weight for weight in network.parameters() if weight.requires_grad], lr=3e-3)
    seen = []
    for step in range(25):
        found = subject.loss("autoencoder", network, batch(0, 1, 2, 3), step)
        optimiser.zero_grad()
        found.total.backward()
        optimiser.step()
        seen.append(float(found.values["generative"]))
    assert seen[-1] < 0.5 * seen[0]
