"""An autoencoder without a transformer is upgraded: a recipe of data and tokenizer, its pair a bare autoencoder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderTiny
from PIL import Image

import davae
from davae.recipe import load_recipe
from davae.run.run import Run
from tiny_pair import build_tiny_pair, tiny_autoencoder
from tiny_run import run, skipped
from tiny_text import build_tiny_text_pair

TOKENIZER = {"steps": 2, "batch_size": 4, "calibration_images": 8, "log_every": 1, "crop_from": 48}


def taesd() -> AutoencoderTiny:
    """f4 with 4 channels."""
    widths, blocks = (8, 8, 8), (1, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
    )


BASES = {"AutoencoderDC": tiny_autoencoder, "AutoencoderTiny": taesd}


def write(folder: Path, pair: Path, **sections: object) -> Path:
    values = {
        "name": "alone",
        "device": "cpu",
        "data": {"kind": "solids", "count": 12, "test_count": 4, "workers": 0},
        "pair": str(pair),
        "image_size": 32,
        "tokenizer": TOKENIZER,
    }
    given = {key: value for key, value in (values | sections).items() if value is not None}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def pretraining(**settings: object) -> dict[str, object]:
    """Sections of a recipe that makes an autoencoder for 16 px, and nothing else."""
    config = {key: value for key, value in tiny_autoencoder().config.items() if not key.startswith("_")}
    training = {"steps": 1, "batch_size": 2, "model": "AutoencoderDC", "model_config": json.loads(json.dumps(config))}
    return {"tokenizer": None, "image_size": 0, "pretrain": {"image_size": 16, "autoencoder": training | settings}}


@pytest.mark.parametrize("kind", BASES)
def test_a_bare_autoencoder_is_upgraded(tmp_path: Path, kind: str) -> None:
    base = BASES[kind]()
    base.save_pretrained(tmp_path / "base")
    recipe = write(tmp_path, tmp_path / "base")
    status, said = run(recipe, tmp_path / "runs", verb="train-tokenizer")
    assert status == 0, said
    model = davae.AutoencoderDA.from_pretrained(tmp_path / "runs" / "alone" / "tokenizer").eval()
    assert model.is_calibrated
    assert (model.config.base_class, model.layout.base_channels, model.layout.detail_channels) == (kind, 4, 4)
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.base_vae.state_dict()[name], tensor), name
    with torch.no_grad():
        latent = model.encode(torch.rand(2, 3, 32, 32) * 2 - 1).latent_dist.mode()
        assert latent.shape == (2, 8, 4, 4)
        assert model.decode(latent).sample.shape == (2, 3, 32, 32)
    for path in (tmp_path / "runs").rglob("*.json"):
        if path.parent.name == "tokenizer":
            assert str(tmp_path) not in path.read_text()

    assert skipped(run(recipe, tmp_path / "runs")[1]) == ["tokenizer"]  # the whole recipe is that one stage
    with torch.no_grad():
        next(base.parameters()).add_(1.0)
    base.save_pretrained(tmp_path / "base")
    status, said = run(recipe, tmp_path / "runs")
    assert status == 1
    assert "finished tokenizer with other settings: pair: " in said


def test_a_pair_and_its_autoencoder_are_the_same_start(tmp_path: Path) -> None:
    pair = build_tiny_pair(tmp_path / "pair")
    assert run(write(tmp_path, pair), tmp_path / "runs")[0] == 0
    assert skipped(run(write(tmp_path, pair / "vae"), tmp_path / "runs")[1]) == ["tokenizer"]


def test_what_one_recipe_pretrained_the_next_one_upgrades(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    status, said = run(write(tmp_path, Path("embedded"), name="first", **pretraining()), runs)
    assert status == 0, said
    status, said = run(write(tmp_path, runs / "first" / "pretrain" / "vae"), runs)
    assert status == 0, said
    assert davae.AutoencoderDA.from_pretrained(runs / "alone" / "tokenizer").is_calibrated


def refused(recipe: Path) -> str:
    """What is said where nothing may be trained."""
    status, said = run(recipe, recipe.parent / "runs")
    assert status == 1
    assert "Traceback" not in said
    assert not (recipe.parent / "runs" / "alone" / "checkpoints").exists()
    return said


def test_no_folder_and_no_autoencoder_are_told_apart(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"There is no autoencoder in {nowhere}: got no such folder" in refused(write(tmp_path, nowhere))
    nowhere.mkdir()
    assert f"There is no autoencoder in {nowhere}: got no config.json" in refused(write(tmp_path, nowhere))
    transformer = build_tiny_pair(tmp_path / "pair") / "transformer"
    assert "names LightningDiT, known are AutoencoderDA, AutoencoderDC" in refused(write(tmp_path, transformer))


def test_an_upgraded_autoencoder_is_not_upgraded_again(tmp_path: Path) -> None:
    davae.AutoencoderDA.from_base(tiny_autoencoder()).save_pretrained(tmp_path / "upgraded")
    said = refused(write(tmp_path, tmp_path / "upgraded"))
    assert "takes a pretrained autoencoder of diffusers; got an autoencoder that is upgraded already" in said


def test_a_transformer_is_missed_before_anything_is_trained(tmp_path: Path) -> None:
    tiny_autoencoder().save_pretrained(tmp_path / "base")
    finetune = {"cache": {}, "finetune": {"steps": 1, "batch_size": 2}}
    said = refused(write(tmp_path, tmp_path / "base", **finetune))
    assert f"There is no pretrained pair in {tmp_path / 'base'}: model_index.json is missing" in said


@pytest.mark.parametrize("result", ["tokenizer", "pretrain/vae"])
def test_a_recipe_says_whether_training_sees_whole_images(tmp_path: Path, result: str) -> None:
    tiny_autoencoder().save_pretrained(tmp_path / "base")
    made = []
    for name, crop_from in (("cut", 48), ("again", 48), ("whole", None)):
        sections = {"tokenizer": TOKENIZER | {"crop_from": crop_from}}
        if result != "tokenizer":
            sections = pretraining(crop_from=crop_from)
        recipe = write(tmp_path, tmp_path / "base", name=name, **sections)
        assert run(recipe, tmp_path / "runs")[0] == 0
        weights = tmp_path / "runs" / name / result / "diffusion_pytorch_model.safetensors"
        made.append(weights.read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("sections", [{}, pretraining(crop_from=48)], ids=["tokenizer", "pretrain"])
def test_images_too_small_to_be_cropped_are_skipped(tmp_path: Path, sections: dict[str, object]) -> None:
    """Whichever training crops: images are brought down to `crop_from`, never up."""
    (tmp_path / "images").mkdir()
    for side in (24, 40, 48, 64, 80):
        Image.new("RGB", (side, side + 8)).save(tmp_path / "images" / f"{side}.png")
    data = {"kind": "folder", "path": str(tmp_path / "images"), "test_count": 2}  # of the two, one is too small
    images = Run(load_recipe(write(tmp_path, Path("embedded"), data=data, **sections)), tmp_path).data
    train, test = images.train, images.test
    assert sorted([*train.ids, *test.ids]) == ["48.png", "64.png", "80.png"]
    assert train.images(range(len(train)), 48).shape == (2, 3, 48, 48)


def test_the_pairs_transformer_aligns_the_detail_and_counts_as_what_it_depends_on(tmp_path: Path) -> None:
    pair = build_tiny_pair(tmp_path / "pair")
    aligned = TOKENIZER | {"crop_from": None, "generative_alignment": {"block": 1}}
    recipe = write(tmp_path, pair, tokenizer=aligned)
    status, said = run(recipe, tmp_path / "runs")
    assert status == 0, said
    folder = tmp_path / "runs" / "alone"
    logged = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert all({"generative", "generative_weight"} <= row.keys() for row in logged if row["stage"] == "tokenizer")
    assert skipped(run(recipe, tmp_path / "runs")[1]) == ["tokenizer"]

    transformer = davae.LightningDiT.from_pretrained(pair / "transformer")
    with torch.no_grad():
        transformer.x_embedder.proj.bias.add_(1.0)
    transformer.save_pretrained(pair / "transformer")
    status, said = run(recipe, tmp_path / "runs")
    assert (status, "finished tokenizer with other settings: transformer: " in said) == (1, True)


@pytest.mark.parametrize(
    ("build", "block", "message"),
    [
        (build_tiny_pair, 3, "must be one of the 2 blocks of this LightningDiT, counted from 1; got 3"),
        (build_tiny_text_pair, 1, "tokens inside a SD3Transformer2DModel cannot be compared; allowed are"),
    ],
)
def test_what_cannot_be_seen_is_refused_before_anything_is_trained(
    tmp_path: Path, build: Callable[[Path], Path], block: int, message: str
) -> None:
    pair = build(tmp_path / "pair")
    assert message in refused(write(tmp_path, pair, tokenizer=TOKENIZER | {"generative_alignment": {"block": block}}))
