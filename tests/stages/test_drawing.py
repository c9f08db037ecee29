"""What `sample` and `evaluate` draw with: seeds, classes, decoding, and a public checkpoint from end to end."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

import davae
from conftest import assert_close
from davae.cli import main
from davae.models.scaling import scaling_of
from davae.recipe import RecipeError, SampleConfig, parse_recipe
from davae.stages import drawing
from davae.stages.drawing import ClassDrawer, batches, draw_all, enlarged, to_uint8
from davae.stages.pairs import Pair
from tiny_pair import build_tiny_pair

State = dict[str, Tensor]
KEYS = Path(__file__).parents[1] / "convert" / "keys"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> davae.LightningDiTPipeline:
    """18 classes, 16 px."""
    return Pair(build_tiny_pair(tmp_path_factory.mktemp("pair"))).load()


def drawer(pair: davae.LightningDiTPipeline, **settings: Any) -> ClassDrawer:
    return ClassDrawer(pair, SampleConfig(**({"steps": 2, "guidance_scale": 2.0, "seed": 5} | settings)))


def test_an_image_is_a_function_of_its_number(pair: davae.LightningDiTPipeline) -> None:
    for labels in ("balanced", "random"):
        one = drawer(pair, labels=labels)
        together = one.latents([3, 20, 21])
        assert together.shape == (3, 4, 4, 4)
        assert together.dtype == torch.float32
        assert_close(one.latents([21, 3]), together[[2, 0]])
        parts = list(draw_all(one, 5, batch_size=2))
        assert [indices for indices, _ in parts] == batches(5, 2) == [[0, 1], [2, 3], [4]]
        assert_close(parts[1][1][1:], together[:1])
    assert (drawer(pair, seed=6).latents([3]) - drawer(pair).latents([3])).abs().max() > 1e-2


def test_seeds_follow_the_number(pair: davae.LightningDiTPipeline) -> None:
    generator = torch.Generator().manual_seed(5 + 20)
    want = pair([20 % 18], 2, guidance_scale=2.0, generator=generator, output_type="latent").images
    assert_close(drawer(pair).latents([20]), want)


def test_classes_are_balanced_or_drawn(pair: davae.LightningDiTPipeline) -> None:
    balanced = drawer(pair).labels(range(40))
    assert balanced == [index % 18 for index in range(40)]
    drawn = drawer(pair, labels="random").labels(range(3000))
    assert drawn == drawer(pair, labels="random", steps=3).labels(range(3000))
    assert drawn[100:110] == drawer(pair, labels="random").labels(range(100, 110))
    counts = torch.bincount(torch.tensor(drawn), minlength=18)
    assert len(counts) == 18
    # 3000 draws of 18 classes: 167 each, standard deviation 12.5.
    assert (counts - 3000 / 18).abs().max() < 5 * 12.5
    assert drawer(pair, labels="random", seed=6).labels(range(100)) != drawn[:100]
    assert drawer(pair).condition_names([2, 19]) == ["class 2", "class 1"]


def test_decoding_in_parts_changes_nothing(pair: davae.LightningDiTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    one = drawer(pair)
    latents = one.latents(range(5))
    whole = one.images(latents)
    assert whole.shape == (5, 3, 16, 16)
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, to_uint8(pair.decode(latents, output_type="pt")))
    monkeypatch.setattr(drawing, "DECODED_AT_ONCE", 2)
    assert (one.images(latents).int() - whole.int()).abs().max() <= 1
    larger = one.images(latents, size=32)
    want = enlarged(pair.decode(latents, output_type="pt"), 32)
    assert larger.shape == (5, 3, 32, 32)
    assert (larger.float() - 255 * want.clamp(0, 1)).abs().max() <= 1.01


def test_half_precision_and_guided_channels_reach_the_transformer(pair: davae.LightningDiTPipeline) -> None:
    exact = drawer(pair).latents([0, 1])
    rounded = drawer(pair, precision="bf16").latents([0, 1])
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    first = drawer(pair, guidance_channels=3, steps=1).latents([0, 1])
    guided, plain = (drawer(pair, guidance_scale=scale, steps=1).latents([0, 1]) for scale in (2.0, 1.0))
    assert_close(first[:, :3], guided[:, :3], 1e-6)
    assert_close(first[:, 3:], plain[:, 3:], 1e-6)
    late = drawer(pair, guidance_interval=(0.9, 1.0), steps=1).latents([0, 1])
    assert_close(late, plain, 1e-6)


@pytest.mark.parametrize("interval", ["[0.5, 0.2]", "[-0.1, 1.0]", "[0.0, 1.5]"])
def test_an_impossible_interval_is_refused(interval: str) -> None:
    values = {"name": "x", "data": {"kind": "solids"}, "sample": {"guidance_interval": json.loads(interval)}}
    with pytest.raises(RecipeError, match="guidance_interval must be two times in order"):
        parse_recipe(values)


@torch.no_grad()
def test_the_upgrade_keeps_the_pretrained_statistics_of_the_base_channels(tmp_path: Path) -> None:
    """Measured anew on half-size images they would differ, and the transformer would see other base latents."""
    config = {"latent_channels": 8, "block_out_channels": (4,), "norm_num_groups": 4, "layers_per_block": 1}
    mean, std = torch.randn(8).tolist(), (0.5 + torch.rand(8)).tolist()
    base = AutoencoderKL(**config, scaling_factor=1.0, latents_mean=mean, latents_std=std).eval()
    upgraded = davae.AutoencoderDA.from_base(base, scale=2, detail_channels=24).eval()
    upgraded.calibrate(torch.randn(24), 0.5 + torch.rand(24))
    upgraded.save_pretrained(tmp_path)
    upgraded = davae.AutoencoderDA.from_pretrained(tmp_path).eval()
    before, after = scaling_of(base), scaling_of(upgraded)
    assert (before.shift, before.scale) == (after.shift[:8], after.scale[:8])
    assert (before.shift, before.scale) == (tuple(mean), tuple(1 / value for value in std))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    small = torch.nn.functional.interpolate(images, scale_factor=0.5, mode="bicubic", align_corners=False)
    seen = before.normalise(base.encode(small).latent_dist.mode())
    assert_close(after.normalise(upgraded.encode(images).latent_dist.mode())[:, :8], seen, 1e-6)


def without_numbers(keys: Iterable[str]) -> set[str]:
    """Keys of any number of blocks."""
    return {re.sub(r"^blocks\.\d+", "blocks", key) for key in keys}


@torch.no_grad()
@pytest.mark.parametrize("wrapped", ["ema", "model"])
def test_a_public_checkpoint_draws_what_the_reference_draws(
    tmp_path: Path, golden: Callable[[str], State], monkeypatch: pytest.MonkeyPatch, wrapped: str
) -> None:
    """`davae convert` of a checkpoint as LightningDiT's training writes it, then drawing."""
    tensors = golden("lightningdit_a_base")
    state = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    assert without_numbers(state) == without_numbers(json.loads((KEYS / "lightningdit_xl.json").read_text()))
    prefix = "module." if wrapped == "model" else ""  # the average is saved without, the weights inside DDP
    torch.save({wrapped: {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "0800000.pt")
    torch.save({"mean": torch.full((1, 8, 1, 1), 0.5), "std": torch.full((1, 8, 1, 1), 2.0)}, tmp_path / "stats.pt")
    AutoencoderKL(
        latent_channels=8,
        block_out_channels=(4,),
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=None,
    ).save_pretrained(tmp_path / "vae")
    command = ["convert", tmp_path / "0800000.pt", "--vae", tmp_path / "vae", "--statistics", tmp_path / "stats.pt"]
    assert main([str(word) for word in [*command, "--no-qk-norm", "--to", tmp_path / "pair"]]) == 0

    labels = tensors["in.cfg_y"].chunk(2)[0].tolist()  # of 10 classes, so image i is of class i
    config = SampleConfig(
        steps=9,  # the reference's 10 points, shifted by 0.3 by the pair's own scheduler
        guidance_scale=tensors["in.cfg_scale"].item(),
        guidance_interval=(tensors["in.cfg_interval_start"].item(), 1.0),
    )
    one = ClassDrawer(Pair(tmp_path / "pair").load(), config)
    monkeypatch.setattr(drawing, "draw_noise", lambda _seeds, _shape: tensors["in.sample_z"])
    latents = one.latents(labels)
    assert_close(latents, tensors["out.sample_cfg"])
    with_statistics = one.pipeline.vae.decode(latents * 2 + 0.5).sample
    assert torch.equal(one.images(latents), to_uint8(with_statistics / 2 + 0.5))
