"""VA-VAE: an autoencoder whose latent learns to look like a foundation model's features; the shipped recipes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from davae.data.solids import SolidsSource
from davae.models.vision_features import FoundationFeatures
from davae.recipe import RecipeError, load_recipe
from davae.train.checkpoint import CheckpointStore
from davae.train.feed import Share, feed
from davae.train.image_set import ImageSet
from davae.train.loop import train
from davae.train.objective import AutoencoderConfig, VisionAlignConfig, VisionWeighting
from davae.train.reconstructor import PlainReconstructor
from davae.train.settings import OptimConfig
from davae.train.tokenizer import TokenizerTask
from davae.train.vision_alignment import VisionAlignment

TIGHT = VisionWeighting(weight=1.0, cosine_margin=0.0, distance_margin=0.0)


def foundation() -> FoundationFeatures:
    """A random DINOv2 that sees 24 px as 8x8 patches."""
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=3, mlp_ratio=2
    )
    model = Dinov2Model(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return FoundationFeatures(model, grid=8)


def aligned(steps: int = 1, **settings: Any) -> TokenizerTask:
    """The task over a tiny f2 AutoencoderKL with 8x8 latents."""
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **levels)
    vision = VisionAlignConfig(**{"model": "somewhere", "phases": (TIGHT,)} | settings)
    config = AutoencoderConfig(
        steps=steps,
        checkpoint_every=3,
        batch_size=4,
        precision="fp32",
        kl_weight=0.0,
        vision=vision,
        optim=OptimConfig(lr=1e-2),
    )
    alignment = VisionAlignment(vision, foundation(), latent_channels=4)
    return TokenizerTask(PlainReconstructor(autoencoder, config, 0, alignment), config)


def loss(task: TokenizerTask, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    batch = ImageSet(SolidsSource(16), 16, seed=0).__getitems__([0, 1, 2, 3])
    loss = task.loss("autoencoder", task.reconstructor.network, batch, step)
    return loss.total, loss.values


def fit(task: TokenizerTask, **parts: Any) -> None:
    config, share, images = task.config, Share(4), ImageSet(SolidsSource(16), 16, seed=0)
    train(task, lambda start: feed(images, share, start, config.steps), config, Accelerator(cpu=True), **parts)


@pytest.mark.parametrize("reverse", [True, False])
def test_the_latent_comes_to_look_like_the_features(reverse: bool) -> None:
    task = aligned(12, reverse_projection=reverse)
    start, features = float(loss(task)[1]["vision"]), task.reconstructor.vision.features
    frozen = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    fit(task)
    assert float(loss(task)[1]["vision"]) < 0.7 * start
    assert all(torch.equal(frozen[name], tensor) for name, tensor in features.state_dict().items())


def test_the_projection_is_trained_and_neither_it_nor_the_foundation_model_is_saved(tmp_path: Path) -> None:
    task = aligned()
    loss(task)[0].backward()
    projection = task.reconstructor.vision.projection
    assert projection.conv.weight.grad.abs().max() > 0
    trained = set(task.learners["autoencoder"].network.parameters())
    assert projection.conv.weight in trained
    assert not set(task.reconstructor.vision.features.parameters()) & trained
    autoencoder = task.reconstructor.network.autoencoder
    autoencoder.save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path).state_dict().keys() == autoencoder.state_dict().keys()


def test_the_sampled_latent_is_aligned() -> None:
    task = aligned()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        result = task.reconstructor.reconstruct(task.reconstructor.network, images, [0, 1])
        other = task.reconstructor.reconstruct(task.reconstructor.network, images, [2, 3])
        want = task.reconstructor.vision.projection.conv(result.mean)
    projected, features = result.vision
    assert projected.shape == features.shape == (2, 16, 8, 8)
    assert torch.equal(features, task.reconstructor.vision.features(images))
    assert torch.equal(features, other.vision[1])
    assert not torch.equal(projected, other.vision[0])  # another draw of the same posterior
    assert not torch.equal(projected, want)


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_adaptive_alignment_pulls_as_hard_as_its_weight_says(weight: float) -> None:
    pulls = []
    for value in (1e-9, weight):
        task = aligned(phases=(VisionWeighting(weight=value, cosine_margin=0, distance_margin=0),))
        pulls.append(torch.autograd.grad(loss(task)[0], task.reconstructor.latent_weight)[0])
    assert float((pulls[1] - pulls[0]).norm() / pulls[0].norm()) == pytest.approx(weight, rel=0.02)


def test_weight_and_margins_follow_the_phases() -> None:
    phases = (TIGHT, VisionWeighting(from_step=5, weight=0.25, cosine_margin=0.5, distance_margin=0.25))
    task = aligned(phases=phases, adaptive=False)
    for step, weight in ((4, 1.0), (5, 0.25)):
        total, values = loss(task, step)
        assert total.item() == pytest.approx(float(values["l1"] + weight * values["vision"]), rel=1e-5)
    assert float(loss(task, 4)[1]["vision"]) > float(loss(task, 5)[1]["vision"]) + 0.1


def test_a_killed_training_goes_on_bit_for_bit_in_its_phase(tmp_path: Path) -> None:
    phases = (TIGHT, VisionWeighting(from_step=2, weight=0.25), VisionWeighting(from_step=4, weight=0.1))
    straight, broken, resumed = (aligned(6, phases=phases) for _ in range(3))
    fit(straight)

    def die(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, store=CheckpointStore(tmp_path, {}), hooks=[(4, die)])
    with torch.no_grad():
        resumed.reconstructor.vision.projection.conv.weight.zero_()
    fit(resumed, store=CheckpointStore(tmp_path, {}))
    want, got = (task.reconstructor.network.state_dict() for task in (straight, resumed))
    assert "projection.conv.weight" in want
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


PUBLISHED = {
    "vavae-f16d16": 69_610_963,
    "vavae-f16d32": 69_836_067,
    "vavae-f16d64": 70_293_955,
    "ldm-f16d32": 69_836_067,
}
"""Recipe -> parameters of the published autoencoder."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_build_the_published_autoencoders(name: str) -> None:
    section = load_recipe(name).pretrain
    with torch.device("meta"):
        model = AutoencoderKL(**section.autoencoder.model_config)
        latent = model.encode(torch.empty(1, 3, section.image_size, section.image_size)).latent_dist.mode()
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name]
    assert latent.shape == (1, int(name[-2:]), 16, 16)
    assert section.transformer is None


def test_the_released_model_has_three_phases() -> None:
    config = load_recipe("vavae-f16d32").pretrain.autoencoder
    epoch = 1_281_167 / 256
    found = [(entry.weight, entry.cosine_margin, entry.distance_margin) for entry in config.vision.phases]
    assert found == [(0.5, 0, 0), (0.1, 0, 0), (0.1, 0.5, 0.25)]
    starts = [entry.from_step for entry in config.vision.phases]
    assert [*starts, config.steps] == pytest.approx([0, 100 * epoch, 115 * epoch, 130 * epoch], abs=1)


def test_recipes_differ_in_the_alignment_alone() -> None:
    whole, plain = (load_recipe(name).pretrain.autoencoder for name in ("vavae-f16d32", "ldm-f16d32"))
    fields = {name for name in vars(whole) if getattr(whole, name) != getattr(plain, name)}
    assert fields == {"vision", "steps"}
    assert plain.vision is None


def test_a_phase_of_the_command_line_is_checked() -> None:
    short = "pretrain.autoencoder.vision.phases=[{weight: 0.1, cosine_margin: 0.5, distance_margin: 0.25}]"
    config = load_recipe("vavae-f16d32", [short]).pretrain.autoencoder
    assert config.vision.phases == VisionAlignConfig(model="somewhere").phases
    with pytest.raises(RecipeError, match=r"phases\.0\.weigth: unknown key; did you mean 'weight'"):
        load_recipe("vavae-f16d32", [short.replace("weight", "weigth")])
