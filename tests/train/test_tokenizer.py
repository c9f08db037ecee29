"""The tokenizer objective: the base stands still, the detail learns its structure, the judge waits its turn."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn

import davae
from davae.core.losses import alignment, hinge_discriminator
from davae.core.sharpness import pyramid_distance, spectral_distance
from davae.data.solids import SolidsSource
from davae.train.batch import Batch
from davae.train.checkpoint import CheckpointStore
from davae.train.feed import Share, feed
from davae.train.image_set import ImageSet
from davae.train.loop import train
from davae.train.objective import (
    AdversarialConfig,
    AutoencoderConfig,
    PerceptualConfig,
    PyramidConfig,
    SpectrumConfig,
    TokenizerConfig,
)
from davae.train.reconstructor import PlainReconstructor, UpgradedReconstructor
from davae.train.settings import OptimConfig
from davae.train.tokenizer import TokenizerTask
from tiny_pair import tiny_autoencoder

FAST = OptimConfig(lr=3e-3, betas=(0.9, 0.99))


def tokenizer(distance: Any = None, **settings: Any) -> TokenizerTask:
    """The task over a tiny base with two detail channels per base channel."""
    torch.manual_seed(0)
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), scale=2, detail_channels=8)
    config = TokenizerConfig(**{"steps": 6, "batch_size": 4, "precision": "fp32", "optim": FAST} | settings)
    return TokenizerTask(UpgradedReconstructor(autoencoder, config, seed=0), config, distance)


def judged(start_step: int, **settings: Any) -> TokenizerTask:
    judge = AdversarialConfig(start_step=start_step, width=4, optim=OptimConfig(lr=1e-2, betas=(0.5, 0.9)))
    return tokenizer(adversarial=judge, **settings)


def images(*positions: int) -> Batch:
    return ImageSet(SolidsSource(16), 32, seed=0).__getitems__(list(positions))


def fit(task: TokenizerTask, **parts: Any) -> None:
    config = task.config
    share, training_set = Share(config.batch_size), ImageSet(SolidsSource(16), 32, seed=0)
    train(task, lambda start: feed(training_set, share, start, config.steps), config, Accelerator(cpu=True), **parts)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def loss(task: TokenizerTask, step: int = 0, batch: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    loss = task.loss("autoencoder", task.reconstructor.network, batch or images(0, 1, 2, 3), step)
    return loss.total, loss.values


def pull(task: TokenizerTask, weight: nn.Parameter, step: int = 0) -> Tensor:
    """Gradient of the whole loss at a weight."""
    return torch.autograd.grad(loss(task, step)[0], weight)[0]


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_the_base_stands_still_and_still_decodes() -> None:
    task = judged(start_step=2, ema_decay=0.9)
    model = task.reconstructor.network
    before, pretrained = state(model), tiny_autoencoder()
    pretrained.load_state_dict(model.base_vae.state_dict())
    fit(task)
    after = state(model)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"encoder", "decoder"}
    assert all(torch.equal(after[f"base_vae.{name}"], tensor) for name, tensor in pretrained.state_dict().items())
    with torch.no_grad():
        latent = model.encode(images(0)["image"] / 127.5 - 1).latent_dist.mode()
        small = pretrained.decode(latent[:, :4]).sample
        assert torch.equal(model.preview(latent), F.interpolate(small, scale_factor=2, mode="bicubic"))


def test_every_trained_part_moves() -> None:
    task = tokenizer()
    before = state(task.reconstructor.network)
    fit(task)
    after = state(task.reconstructor.network)
    trained = [name for name, weight in task.reconstructor.network.named_parameters() if weight.requires_grad]
    still = [name for name in trained if torch.equal(before[name], after[name])]
    assert still == []


def test_detail_is_dropped_for_whole_samples() -> None:
    positions = list(range(24))
    task = tokenizer(detail_dropout=0.5)
    model, pictures = task.reconstructor.network, images(*positions)["image"] / 127.5 - 1
    with torch.no_grad():
        result = task.reconstructor.reconstruct(model, pictures, positions)
        full = model.decoder(model.layout.join(result.base, result.latent))
        bare = model.decoder(model.layout.join(result.base, torch.zeros_like(result.latent)))
        again = task.reconstructor.reconstruct(model, pictures[[7, 3]], [7, 3]).sample
    kept = torch.isclose(result.sample, full, atol=1e-5).flatten(1).all(dim=1)
    dropped = torch.isclose(result.sample, bare, atol=1e-5).flatten(1).all(dim=1)
    assert bool((kept ^ dropped).all())
    assert 6 <= int(dropped.sum()) <= 18
    assert result.latent.abs().amin() > 0  # the alignment sees what the decoder does not
    torch.testing.assert_close(again, result.sample[[7, 3]], rtol=1e-4, atol=1e-5)  # a matter of the sample alone


def test_kept_details_are_enlarged_only_on_request() -> None:
    task = tokenizer(detail_dropout=0.5, dropout_rescale=True)
    model, pictures, positions = task.reconstructor.network, images(*range(8))["image"] / 127.5 - 1, list(range(8))
    with torch.no_grad():
        result = task.reconstructor.reconstruct(model, pictures, positions)
        doubled = model.decoder(model.layout.join(result.base, 2 * result.latent))
    kept = torch.isclose(result.sample, doubled, atol=1e-5).flatten(1).all(dim=1)
    assert 0 < int(kept.sum()) < 8


def test_the_posterior_draw_belongs_to_the_position() -> None:
    task = tokenizer(detail_dropout=0)
    model, picture = task.reconstructor.network, images(0)["image"] / 127.5 - 1
    with torch.no_grad():
        first, second, other = (task.reconstructor.reconstruct(model, picture, [place]) for place in (5, 5, 6))
    assert torch.equal(first.latent, second.latent)
    assert torch.equal(first.mean, other.mean)
    spread = (first.latent - first.mean) / (0.5 * first.logvar).exp()
    assert 0.7 < spread.std() < 1.3
    assert not torch.equal(first.latent, other.latent)


def distance_to_base(task: TokenizerTask) -> float:
    """Alignment over images that the training does not see."""
    pictures = SolidsSource(16, seed=9).images(range(16), 32) / 127.5 - 1
    with torch.no_grad():
        base, detail, _ = task.reconstructor.network.moments(pictures)
    return float(alignment(task.reconstructor.layout, detail, base))


@pytest.mark.parametrize("adaptive", [True, False])
def test_alignment_brings_the_detail_to_the_base(adaptive: bool) -> None:
    aligned, loose = (
        tokenizer(steps=40, align_weight=weight, align_adaptive=adaptive, detail_dropout=0) for weight in (1.0, 0.0)
    )
    start = distance_to_base(aligned)
    fit(aligned)
    fit(loose)
    assert distance_to_base(aligned) < 0.5 * start
    assert distance_to_base(aligned) < 0.5 * distance_to_base(loose)


def test_adaptive_alignment_pulls_as_hard_as_its_weight_says() -> None:
    settings: dict[str, Any] = {"kl_weight": 0.0, "detail_dropout": 0}
    pulls = {}
    for weight in (0.0, 0.5, 2.0):
        task = tokenizer(align_weight=weight, **settings)
        pulls[weight] = pull(task, task.reconstructor.latent_weight)
    reference = pulls[0.0].norm()
    assert float((pulls[0.5] - pulls[0.0]).norm() / reference) == pytest.approx(0.5, rel=0.02)
    assert float((pulls[2.0] - pulls[0.0]).norm() / reference) == pytest.approx(2.0, rel=0.02)


def test_the_journal_tells_the_alignment_and_its_weight() -> None:
    total, values = loss(tokenizer(align_weight=0.5, kl_weight=0.0))
    assert total.item() == pytest.approx(float(values["l1"] + values["align_weight"] * values["align"]), rel=1e-5)
    total, values = loss(tokenizer(align_weight=0.5, align_adaptive=False, kl_weight=0.25))
    assert "align_weight" not in values
    assert total.item() == pytest.approx(float(values["l1"] + 0.25 * values["kl"] + 0.5 * values["align"]), rel=1e-5)


def test_the_judge_waits_for_its_step() -> None:
    task, seen = judged(start_step=3, steps=5), []
    start = state(task.adversary.network)
    fit(task, hooks=[(1, lambda done: seen.append(state(task.adversary.network)))])
    for early in seen[:3]:  # steps 0, 1 and 2; running statistics included
        assert all(torch.equal(early[name], tensor) for name, tensor in start.items())
    # A bias of the last layer is pushed equally up and down while every logit is small.
    assert all(not torch.equal(seen[3][name], start[name]) for name in start if not name.endswith(".bias"))
    assert "adversarial" not in loss(task, step=2)[1]
    assert "adversarial" in loss(task, step=3)[1]


def test_the_judge_pulls_as_hard_as_its_weight_says() -> None:
    task = judged(start_step=1, align_weight=0.0, kl_weight=0.0)
    before, after = (pull(task, task.reconstructor.last_weight, step) for step in (0, 1))
    assert float((after - before).norm() / before.norm()) == pytest.approx(0.1, rel=0.1)


def test_a_judge_from_the_first_step_pulls_as_hard_from_there() -> None:
    settings: dict[str, Any] = {"align_weight": 0.0, "kl_weight": 0.0}
    alone, judged_at_once = tokenizer(**settings), judged(start_step=0, **settings)
    before, after = (pull(task, task.reconstructor.last_weight) for task in (alone, judged_at_once))
    assert float((after - before).norm() / before.norm()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("every", [1, 10])
def test_a_training_with_a_judge_from_the_first_step_still_learns_to_reconstruct(every: int) -> None:
    """Its weight is measured before the judge has learned anything, and does not hit the clamp."""
    task, ratios = judged(start_step=0, steps=40, adaptive_every=every), []
    start = float(loss(task)[1]["l1"])
    fit(task, hooks=[(1, lambda done: ratios.append(float(task.state["ratio.adversarial"])))])
    assert len(ratios) == 40
    assert all(0 < ratio < 1e4 for ratio in ratios)
    assert len(set(ratios)) == 40 // every
    assert float(loss(task)[1]["l1"]) < 0.7 * start


def test_a_judge_may_have_a_fixed_weight() -> None:
    """As in the text-to-image branch."""
    judge = AdversarialConfig(start_step=0, width=4, weight=0.25, adaptive=False)
    task = tokenizer(adversarial=judge, align_weight=0.0, kl_weight=0.0)
    total, values = loss(task)
    assert float(total.detach()) == pytest.approx(float(values["l1"] + 0.25 * values["adversarial"]), rel=1e-5)
    assert (task.state, "adversarial_weight" in values) == ({}, False)


def test_the_autoencoders_loss_does_not_teach_the_judge() -> None:
    task = judged(start_step=0)
    batch, network = images(0, 1, 2, 3), task.reconstructor.network
    first = task.loss("autoencoder", network, batch, 0)
    first.total.backward()
    assert all(weight.grad is None and weight.requires_grad for weight in task.adversary.network.parameters())
    network.zero_grad()
    task.loss("discriminator", task.adversary.network, batch | first.outputs, 0).total.backward()
    assert all(weight.grad is not None for weight in task.adversary.network.parameters())
    assert all(weight.grad is None for weight in network.parameters())


def test_the_judge_gets_images_and_reconstructions_by_argument() -> None:
    task, batches = judged(start_step=0), (images(0, 1), images(2, 3))
    outputs = [task.loss("autoencoder", task.reconstructor.network, batch, 0).outputs for batch in batches]
    for batch, given in zip(batches, outputs, strict=True):
        assert given.keys() == {"real", "fake"}
        assert torch.equal(given["real"], batch["image"] / 127.5 - 1)
        assert given["fake"].shape == given["real"].shape
        assert not given["fake"].requires_grad
    network = task.adversary.network.eval()  # its batch norms stand still
    for given in outputs:  # whatever the autoencoder saw last
        found = task.loss("discriminator", network, given, 0)
        assert torch.equal(found.total, hinge_discriminator(network(given["real"]), network(given["fake"])))
    with pytest.raises(KeyError, match="real"):
        task.loss("discriminator", network, batches[0], 0)


def test_the_judge_learns_to_tell_real_from_made() -> None:
    task = judged(start_step=0, steps=25, optim=OptimConfig(lr=0.0))
    fit(task)
    pictures, reconstructor = images(0, 1, 2, 3)["image"] / 127.5 - 1, task.reconstructor
    with torch.no_grad():
        real = task.adversary.network(pictures)
        made = task.adversary.network(reconstructor.reconstruct(reconstructor.network, pictures, [0, 1, 2, 3]).sample)
    assert real.mean() > made.mean() + 0.5


def test_a_perceptual_distance_has_its_weight() -> None:
    def distance(fakes: Tensor, references: Tensor) -> Tensor:
        assert not references.requires_grad
        return (fakes - references).square().flatten(1).sum(dim=1)

    settings = PerceptualConfig(vgg="vgg", linear="linear", weight=3.0)
    total, values = loss(tokenizer(distance, perceptual=settings, align_weight=0.0, kl_weight=0.0))
    assert total.item() == pytest.approx(float(values["l1"] + 3 * values["perceptual"]), rel=1e-5)


def test_sharpness_has_its_weights_beside_l1() -> None:
    sharp = {"pyramid": PyramidConfig(weight=2.0, levels=2), "spectrum": SpectrumConfig(weight=3.0, focus=0.5)}
    task, batch = tokenizer(align_weight=0.0, kl_weight=0.0, **sharp), images(0, 1, 2, 3)
    total, values = loss(task, batch=batch)
    want = values["l1"] + 2 * values["pyramid"] + 3 * values["spectrum"]
    assert float(total.detach()) == pytest.approx(float(want), rel=1e-5)
    outputs = task.loss("autoencoder", task.reconstructor.network, batch, 0).outputs
    fake, real = outputs["fake"], outputs["real"]
    assert float(values["pyramid"]) == pytest.approx(float(pyramid_distance(fake, real, 2)))
    assert float(values["spectrum"]) == pytest.approx(float(spectral_distance(fake, real, 0.5)))
    assert not {"pyramid", "spectrum"} & loss(tokenizer())[1].keys()


def test_adaptive_weights_are_shares_of_the_whole_reconstruction() -> None:
    settings: dict[str, Any] = {"kl_weight": 0.0, "detail_dropout": 0, "pyramid": PyramidConfig(weight=5.0)}
    with_it, without = (tokenizer(align_weight=weight, **settings) for weight in (0.5, 0.0))
    both, reference = (pull(task, task.reconstructor.latent_weight) for task in (with_it, without))
    assert float((both - reference).norm() / reference.norm()) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_summed_reconstruction_is_its_mean_times_the_numbers_of_an_image(adaptive: bool) -> None:
    """As in VA-VAE: L1 and distances together. A ratio to it grows alike, a fixed weight and the KL term do not."""

    def distance(fakes: Tensor, references: Tensor) -> Tensor:
        return (fakes - references).square().flatten(1).mean(dim=1)

    settings: dict[str, Any] = {"align_adaptive": adaptive, "kl_weight": 0.25}
    settings |= {"perceptual": PerceptualConfig(), "pyramid": PyramidConfig()}
    (mean, of_mean), (total, of_sum) = (
        loss(judged(0, distance=distance, reconstruction_reduction=reduction, **settings))
        for reduction in ("mean", "sum")
    )
    numbers, kl = 3 * 32 * 32, 0.25 * of_mean["kl"]
    for name in ("l1", "pyramid", "perceptual", "kl", "align", "adversarial"):
        assert float(of_sum[name]) == pytest.approx(float(of_mean[name]), rel=1e-6)
    for name in ("adversarial_weight", "align_weight") if adaptive else ("adversarial_weight",):
        assert float(of_sum[name]) == pytest.approx(numbers * float(of_mean[name]), rel=1e-4)
    fixed = kl if adaptive else kl + 0.5 * of_mean["align"]
    assert float((total - fixed).detach()) == pytest.approx(numbers * float((mean - fixed).detach()), rel=1e-4)


def test_bf16_leaves_weights_gradients_and_moments_in_fp32(tmp_path: Path) -> None:
    """Weights of fp32 move by a rate of 1e-6; bf16 would round such a step away."""
    small = OptimConfig(lr=1e-6, betas=(0.5, 0.9))
    judge = AdversarialConfig(start_step=0, width=4, optim=small)
    task = tokenizer(adversarial=judge, steps=1, precision="bf16", optim=small)
    networks = {"autoencoder": task.reconstructor.network, "discriminator": task.adversary.network}
    gradients, activations = set(), set()
    for network in networks.values():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda weight: gradients.add(weight.grad.dtype))
    task.adversary.network.register_forward_hook(lambda _, __, answer: activations.add(answer.dtype))
    before = {name: state(network) for name, network in networks.items()}
    store = CheckpointStore(tmp_path, {})
    fit(task, store=store)
    assert activations == {torch.bfloat16}
    assert gradients == {torch.float32}
    groups = store.latest().groups
    assert {tensor.dtype for name in networks for tensor in groups[f"{name}.optimizer"].values()} == {torch.float32}
    assert {weight.dtype for network in networks.values() for weight in network.parameters()} == {torch.float32}
    chosen = {"autoencoder": task.reconstructor.last_weight, "discriminator": task.adversary.network.main[2].weight}
    for name, weight in chosen.items():
        key = next(key for key, other in networks[name].named_parameters() if other is weight)
        old, new = before[name][key], weight.detach()
        assert ((new - old).abs() - 1e-6).abs().max() < 1e-7  # the first step of Adam is the rate itself
        rounded = old.bfloat16()
        assert (rounded + (new - old).bfloat16() == rounded).float().mean() > 0.95


@pytest.mark.slow
def test_a_compiled_training_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced in earnest, but run without a compiler of C++; adaptive weights go back through the graph twice."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = (tokenizer(steps=2, compile=compiled) for compiled in (False, True))
    begun = state(plain.reconstructor.network)
    fit(plain)
    fit(compiled)
    ends = [state(task.reconstructor.network) for task in (plain, compiled)]
    assert ends[0].keys() == ends[1].keys()
    moved = max(float((ends[0][name] - begun[name]).abs().max()) for name in begun)
    assert all(torch.allclose(ends[0][name], ends[1][name], atol=moved / 50) for name in begun)


WRONG = [
    ({"adaptive_every": 0}, "adaptive_every must be a whole number, at least 1; got 0"),
    ({"detail_dropout": 1.0}, r"detail_dropout must be a number in \[0, 1\); got 1.0"),
    ({"detail_dropout": -0.5}, r"detail_dropout must be a number in \[0, 1\); got -0.5"),
    ({"steps": 0}, "steps must be a whole number, at least 1; got 0"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**{"steps": 1, "batch_size": 1} | settings)


def test_few_detail_channels_train_without_alignment_and_not_with_it() -> None:
    torch.manual_seed(0)
    autoencoder = davae.AutoencoderDA.from_base(tiny_autoencoder(), scale=2, detail_channels=2)
    for weight in (0.0, 0.5):
        config = TokenizerConfig(steps=1, batch_size=4, align_weight=weight)
        task = TokenizerTask(UpgradedReconstructor(autoencoder, config, seed=0), config)
        if weight:
            with pytest.raises(ValueError, match="2 detail for 4 base channels"):
                loss(task)
        else:
            assert "align" not in loss(task)[1]


def plain(kind: str) -> Any:
    if kind == "AutoencoderDC":
        return tiny_autoencoder()
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **levels)


@pytest.mark.parametrize("kind", ["AutoencoderDC", "AutoencoderKL"])
def test_a_plain_autoencoder_learns_by_the_same_task(kind: str) -> None:
    torch.manual_seed(0)
    judge = AdversarialConfig(start_step=10, width=4)
    config = AutoencoderConfig(
        steps=20, batch_size=4, precision="fp32", optim=FAST, latent_noise=0.1, adversarial=judge
    )
    task = TokenizerTask(PlainReconstructor(plain(kind), config, seed=0), config)
    start = float(loss(task)[1]["l1"])
    fit(task)
    assert float(loss(task)[1]["l1"]) < 0.7 * start


@pytest.mark.parametrize("killed_at", [3, 5])  # before and after the judge's first step
def test_a_killed_training_with_a_judge_goes_on_bit_for_bit(tmp_path: Path, killed_at: int) -> None:
    straight, broken, resumed = (judged(start_step=3, ema_decay=0.9, checkpoint_every=2) for _ in range(3))
    fit(straight)

    def die(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, store=CheckpointStore(tmp_path, {}), hooks=[(killed_at, die)])
    with torch.no_grad():
        for weight in resumed.adversary.network.parameters():
            weight.zero_()
    fit(resumed, store=CheckpointStore(tmp_path, {}))
    for name in ("autoencoder", "discriminator"):
        want, got = (state(task.learners[name].network) for task in (straight, resumed))
        assert all(torch.equal(got[key], tensor) for key, tensor in want.items())
