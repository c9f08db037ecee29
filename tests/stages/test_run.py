"""`davae run` from a pair to a report: what it leaves, what it skips, what it does again and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import davae
from conftest import assert_close
from davae.data.latent_cache import LatentCache
from davae.recipe import load_recipe
from tiny_run import STAGES, VERBS, run, skipped, weights


def test_every_stage_leaves_its_output(finished: Path, recipe: Path) -> None:
    assert davae.AutoencoderDA.from_pretrained(finished / "tokenizer").is_calibrated
    assert len(LatentCache(finished / "latents")) == 40
    images = sorted((finished / "samples").glob("0*.png"))
    assert [path.name for path in images] == [f"{index:06d}.png" for index in range(20)]
    assert {Image.open(path).size for path in images} == {(32, 32)}
    assert load_recipe(finished / "recipe.yaml") == load_recipe(recipe)
    assert list(json.loads((finished / "run.json").read_text())["stages"]) == STAGES
    rows = [json.loads(line) for line in (finished / "stats.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        (stage, step) for stage in ("tokenizer", "finetune") for step in (1, 2, 3)
    ]
    for name in ("samples/grid.png", "results.json", "report.html"):
        assert (finished / name).is_file()
    assert not list(finished.rglob(".*")), "a temporary name was left"


def test_the_base_is_untouched_and_the_rest_was_trained(finished: Path, recipe: Path) -> None:
    base = davae.LightningDiTPipeline.from_pretrained(recipe.parent / "pair")
    upgraded = davae.LightningDiTPipeline.from_pretrained(finished / "pipeline")
    for name, weight in base.vae.state_dict().items():
        assert torch.equal(upgraded.vae.base_vae.state_dict()[name], weight), name
    tokenizer = davae.AutoencoderDA.from_pretrained(finished / "tokenizer")
    for name, weight in tokenizer.state_dict().items():
        assert torch.equal(upgraded.vae.state_dict()[name], weight), name
    old, new = base.transformer.state_dict(), upgraded.transformer.state_dict()
    assert new["x_embedder.proj.weight"].shape[1] == 8
    assert new["x_embedder.proj.weight"][:, 4:].abs().max() > 0
    assert (new["blocks.0.mlp.w3.weight"] - old["blocks.0.mlp.w3.weight"]).abs().max() > 0
    assert upgraded.scheduler.config.shift == base.scheduler.config.shift


def test_no_path_of_the_machine_is_saved_with_the_pair(finished: Path) -> None:
    for path in (finished / "pipeline").rglob("*.json"):
        assert str(finished) not in path.read_text(), path


def test_the_cache_holds_what_the_tokenizer_says(finished: Path) -> None:
    from davae.data.solids import SolidsSource

    cache = LatentCache(finished / "latents")
    tokenizer = davae.AutoencoderDA.from_pretrained(finished / "tokenizer").eval()
    images = SolidsSource(40, 7).images([33, 5], 32).float() / 127.5 - 1
    for flip, view in ((False, images), (True, images.flip(-1))):
        with torch.no_grad():
            base, mean, logvar = tokenizer.moments(view)
        stored, stored_logvar = cache.moments(
            [cache.manifest.ids.index(name) for name in ("solid-7-33", "solid-7-5")], [flip] * 2
        )
        assert_close(stored, torch.cat([base, mean], dim=1), 2e-3)
        assert_close(stored_logvar, logvar, 2e-3)


def test_samples_are_what_the_pipeline_draws(finished: Path) -> None:
    pipe = davae.LightningDiTPipeline.from_pretrained(finished / "pipeline")
    seeds = [torch.Generator().manual_seed(index) for index in (3, 19)]
    for index, drawn in zip((3, 19), pipe([3, 1], 3, 1.5, generator=seeds).images, strict=True):
        stored = np.asarray(Image.open(finished / "samples" / f"{index:06d}.png")).astype(int)
        assert np.abs(stored - np.asarray(drawn)).max() <= 1


def test_latents_from_disk_are_decoded_where_the_autoencoder_is(finished: Path) -> None:
    """The meta device stands for a GPU: it mixes with the CPU no better."""
    latents = load_file(finished / "samples" / "latents-000000.safetensors")["latent"]
    pipe = davae.LightningDiTPipeline.from_pretrained(finished / "pipeline").to("meta")
    assert pipe.decode(latents, output_type="pt").device.type == "meta"


def test_every_number_is_json_and_has_its_protocol(finished: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    results = json.loads((finished / "results.json").read_text(), parse_constant=refuse)
    groups = {item["group"].split(":")[0] for item in results["measurements"]}
    assert groups == {"Reconstruction", "Generation", "Speed"}
    for item in results["measurements"]:
        assert item["protocol"], item
    count = {item["group"].split(":")[0]: item["protocol"] for item in results["measurements"]}
    assert (count["Reconstruction"]["images"], count["Generation"]["generated"]) == (12, 20)
    assert (count["Generation"]["real"], count["Speed"]["batch"], count["Speed"]["steps"]) == (20, 2, 3)
    assert results["run"]["hardware"]["cpu"]
    assert len(results["claims"]) >= 5
    for claim in results["claims"]:
        assert re.search(r"\d", claim["detail"]), f"no numbers decide this claim: {claim}"
    for figure in results["figures"]:
        assert figure["caption"][0].isupper()
        assert "n(0, 1)" not in figure["caption"]
        assert (finished / figure["path"]).is_file()


def test_the_report_asks_nothing_of_the_network(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    results = json.loads((finished / "results.json").read_text())
    references = re.findall(r"""(?:src|href|srcset|action|poster|data)\s*=\s*["']([^"']*)""", page)
    references += re.findall(r"""url\(\s*["']?([^"')]*)""", page)
    assert references
    assert [text[:60] for text in references if not text.startswith(("data:", "#"))] == []
    assert not re.search(r"https?://|@import|<iframe|<link[^>]*stylesheet", page)
    for name in (*(figure["title"] for figure in results["figures"]), "finetune", "calibration_images: 16"):
        assert name in page
    assert page.count("<img") >= len(results["figures"]) + 2  # and a curve a training


FRESH_PROCESS = """
import sys, torch
from safetensors.torch import load_file
import davae
pipe = davae.LightningDiTPipeline.from_pretrained(sys.argv[1])
images = pipe([0, 17], 4, 2.0, generator=[torch.Generator().manual_seed(s) for s in (1, 2)], output_type="pt").images
torch.testing.assert_close(images, load_file(sys.argv[2])["images"], rtol=1e-4, atol=1e-4)
"""


def test_the_upgraded_pair_draws_the_same_in_a_fresh_process(finished: Path, tmp_path: Path) -> None:
    pipe = davae.LightningDiTPipeline.from_pretrained(finished / "pipeline")
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipe([0, 17], 4, 2.0, generator=seeds, output_type="pt").images
    assert images.shape == (2, 3, 32, 32)
    save_file({"images": images.contiguous()}, tmp_path / "want.safetensors")
    command = [sys.executable, "-c", FRESH_PROCESS, str(finished / "pipeline"), str(tmp_path / "want.safetensors")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_a_second_call_does_nothing(recipe: Path, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    status, said = run(recipe, copied.parent)
    assert (status, skipped(said)) == (0, STAGES)
    after = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    assert after == before


def test_verb_by_verb_gives_the_same_bits(recipe: Path, finished: Path, tmp_path: Path) -> None:
    for verb in VERBS:
        status, said = run(recipe, tmp_path, verb=verb)
        assert (status, skipped(said)) == (0, []), said
    assert weights(tmp_path / "tiny") == weights(finished)
    drawn = load_file(tmp_path / "tiny" / "samples" / "latents-000016.safetensors")["latent"]
    assert torch.equal(drawn, load_file(finished / "samples" / "latents-000016.safetensors")["latent"])


@pytest.mark.parametrize(
    ("verb", "first"),
    [
        ("cache", "train-tokenizer"),
        ("finetune", "train-tokenizer"),
        ("sample", "finetune"),
        ("evaluate", "train-tokenizer"),
        ("report", "evaluate"),
    ],
)
def test_a_stage_that_comes_too_early_says_what_comes_first(
    recipe: Path, tmp_path: Path, verb: str, first: str
) -> None:
    status, said = run(recipe, tmp_path, verb=verb)
    assert status == 1
    assert f"'davae {first} RECIPE'" in said
    assert "Traceback" not in said
