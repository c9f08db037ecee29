"""`davae pretrain` of an autoencoder alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from transformers import Dinov2Config, Dinov2Model

import davae
from davae.data.solids import SolidsSource
from davae.models.declared_scaling import scaling_of
from davae.recipe import RecipeError, parse_recipe
from tiny_run import run, skipped

RECIPE: dict[str, Any] = {
    "name": "alone",
    "data": {"kind": "solids", "count": 24, "test_count": 4, "workers": 0},
    "pretrain": {
        "image_size": 16,
        "autoencoder": {
            "model": "AutoencoderKL",
            "model_config": {
                "block_out_channels": [8, 8],
                "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
                "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
                "latent_channels": 3,
                "norm_num_groups": 4,
            },
            "steps": 2,
            "batch_size": 4,
            "log_every": 1,
        },
    },
}


def test_an_autoencoder_alone_is_a_whole_run(tmp_path: Path) -> None:
    recipe = tmp_path / "alone.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    status, said = run(recipe, tmp_path)
    assert status == 0, said
    folder = tmp_path / "alone"
    assert list(json.loads((folder / "run.json").read_text())["stages"]) == ["pretrain-autoencoder"]
    assert [path.name for path in (folder / "pretrain").iterdir()] == ["vae"]
    assert json.loads((folder / "pretrain" / "vae" / "provenance.json").read_text())["recipe"]["name"] == "alone"
    for verb in ("run", "pretrain"):
        assert skipped(run(recipe, tmp_path, verb=verb)[1]) == ["pretrain-autoencoder"]

    autoencoder = AutoencoderKL.from_pretrained(folder / "pretrain" / "vae").eval()
    images = SolidsSource(24).images(range(24), 16) / 127.5 - 1
    with torch.no_grad():
        latents = scaling_of(autoencoder).normalise(autoencoder.encode(images).latent_dist.mode())
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert autoencoder.config.scaling_factor == 1.0


def test_an_autoencoder_is_aligned_to_a_saved_foundation_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=24, patch_size=3, **sizes)).save_pretrained(tmp_path / "dinov2")
    autoencoder = RECIPE["pretrain"]["autoencoder"] | {"vision": {"model": str(tmp_path / "dinov2")}}
    recipe = tmp_path / "aligned.yaml"
    recipe.write_text(
        yaml.safe_dump(RECIPE | {"name": "aligned", "pretrain": {"image_size": 16, "autoencoder": autoencoder}})
    )
    status, said = run(recipe, tmp_path)
    assert status == 0, said
    rows = [json.loads(line) for line in (tmp_path / "aligned" / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["vision"] > 0 and row["vision_weight"] > 0 for row in rows)
    AutoencoderKL.from_pretrained(tmp_path / "aligned" / "pretrain" / "vae")  # as it would be without
    status, said = run(recipe, tmp_path, "--set=name=missing", "--set=pretrain.autoencoder.vision.model=nowhere")
    assert status == 1
    assert "There is no foundation model nowhere" in said


def test_what_needs_a_pair_is_refused_without_a_transformer() -> None:
    tokenizer = {"image_size": 32, "tokenizer": {"steps": 1, "batch_size": 1}}
    with pytest.raises(RecipeError, match=r"section tokenizer needs a pair.*add pretrain\.transformer"):
        parse_recipe(RECIPE | tokenizer)
    with pytest.raises(RecipeError, match="save_dtype is of a saved pair; got float8 without a transformer"):
        parse_recipe(RECIPE | {"pretrain": RECIPE["pretrain"] | {"save_dtype": "float8"}})


def test_a_pair_is_made_over_a_given_autoencoder_and_drawn_from(tmp_path: Path) -> None:
    """As LightningDiT over VA-VAE: the statistics of its latents are the autoencoder's own."""
    vae = AutoencoderKL(**RECIPE["pretrain"]["autoencoder"]["model_config"], scaling_factor=None).eval()
    vae.save_pretrained(tmp_path / "plain")
    vae.register_to_config(latents_mean=[0.1, 0.2, 0.3], latents_std=[0.5, 1.0, 2.0], scaling_factor=1.0)
    vae.save_pretrained(tmp_path / "vae")
    transformer = {"size": "B", "model_config": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}}
    values = {
        **RECIPE,
        "name": "over",
        "pretrain": {
            "image_size": 16,
            "autoencoder": {"from": str(tmp_path / "vae")},
            "transformer": {**transformer, "steps": 2, "batch_size": 4, "log_every": 1, "ema_decay": 0.5},
        },
        "sample": {"count": 3, "steps": 2, "guidance_scale": 2.0, "guidance_channels": 3, "npz": True},
    }
    recipe = tmp_path / "over.yaml"
    recipe.write_text(yaml.safe_dump(values))
    status, said = run(recipe, tmp_path)
    assert status == 0, said
    folder = tmp_path / "over"
    stages = ["pretrain-latents", "pretrain-transformer", "sample"]
    assert list(json.loads((folder / "run.json").read_text())["stages"]) == stages
    assert skipped(run(recipe, tmp_path)[1]) == stages
    pair = davae.LightningDiTPipeline.from_pretrained(folder / "pretrain" / "pipeline")
    assert pair.transformer.config.num_layers == 1
    assert pair.scheduler.config.shift == 1 / 0.3
    assert scaling_of(pair.vae) == scaling_of(vae)
    assert all(torch.equal(pair.vae.state_dict()[name], weight) for name, weight in vae.state_dict().items())
    for path in (folder / "pretrain").rglob("config.json"):
        assert str(tmp_path) not in path.read_text(), path

    # The same pair, from a recipe that only draws.
    values = {"name": "drawn", "pair": str(folder / "pretrain" / "pipeline"), "sample": values["sample"]}
    recipe.write_text(yaml.safe_dump(values))
    status, said = run(recipe, tmp_path)
    assert status == 0, said
    assert list(json.loads((tmp_path / "drawn" / "run.json").read_text())["stages"]) == ["sample"]
    with np.load(folder / "samples" / "images.npz") as one, np.load(tmp_path / "drawn/samples/images.npz") as two:
        assert one["arr_0"].shape == (3, 16, 16, 3)
        np.testing.assert_array_equal(one["arr_0"], two["arr_0"])

    for change, expected in (
        (f"pretrain.autoencoder.from={tmp_path / 'plain'}", "declares neither latents_mean/latents_std nor"),
        (f"pretrain.autoencoder.from={tmp_path / 'nowhere'}", "There is no autoencoder in"),
        ("pretrain.image_size=17", "multiple of the autoencoder's compression 2; got 17"),
    ):
        recipe.write_text(
            yaml.safe_dump(
                {
                    **RECIPE,
                    "name": "refused",
                    "pretrain": {
                        "image_size": 16,
                        "autoencoder": {"from": str(tmp_path / "vae")},
                        "transformer": {**transformer, "steps": 2, "batch_size": 4},
                    },
                }
            )
        )
        status, said = run(recipe, tmp_path, "--set", change)
        assert (status, expected in said) == (1, True), said
