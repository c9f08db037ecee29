"""The doctor on tiny real pairs: what it proves, what it refuses, and that it changes nothing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from davae.recipe import load_recipe, parse_recipe
from davae.run.run import Run
from davae.tools.doctor.checks import check_step_zero, check_training_step
from davae.tools.doctor.examination import Examination
from davae.tools.doctor.examine import CHECKS, examine, report
from davae.tools.doctor.finding import Finding
from tiny_pair import build_tiny_pair
from tiny_run import RECIPE, run
from tiny_text import MAX_LENGTH, build_tiny_text_pair

CLASS_CHECKS = [check.name for check in CHECKS if check.name != "prompt cache"]
SD35 = "sd35m-1k"


def tiny(pair: Path | str, **changes: Any) -> dict[str, Any]:
    return yaml.safe_load(RECIPE.format(pair=pair)) | changes


def looked(recipe: dict[str, Any], runs: Path, **options: Any) -> dict[str, list[Finding]]:
    """Findings by check."""
    found: dict[str, list[Finding]] = {}
    for finding in examine(Run(parse_recipe(recipe), runs), **options):
        found.setdefault(finding.check, []).append(finding)
    return found


def levels(found: dict[str, list[Finding]]) -> dict[str, set[str]]:
    return {check: {finding.level for finding in findings} for check, findings in found.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_pair(tmp_path_factory.mktemp("pair") / "pair")


@pytest.fixture(scope="module")
def fresh(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """A recipe of which nothing has run yet."""
    return looked(tiny(pair), tmp_path_factory.mktemp("runs"))


def test_a_sound_recipe_passes_every_check(fresh: dict[str, list[Finding]]) -> None:
    assert list(fresh) == CLASS_CHECKS
    bad = [str(finding) for findings in fresh.values() for finding in findings if finding.level == "failed"]
    assert not bad


def test_what_is_proved_has_numbers(fresh: dict[str, list[Finding]]) -> None:
    (zero,) = fresh["step 0"]
    assert 0 <= zero.values["difference"] <= 1e-5 * zero.values["largest"]
    assert zero.values["detail"] == 0
    (keys,) = fresh["keys"]
    assert set(keys.values["widened"]) == {
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
    }
    (step,) = fresh["training step"]
    # Nothing is learned of the detail yet: its prediction is 0, the target has variance 2.
    assert step.values["loss_detail"] == pytest.approx(2, abs=1)
    assert step.values["gradient_norm"] > 0
    assert fresh["tokens"][0].values == {"base": 16, "upgraded": 16, "native": 64}
    memory = {finding.values["stage"]: finding.values for finding in fresh["memory"]}
    stages = ["tokenizer", "cache", "finetune", "sample: latents", "sample: images"]
    assert list(memory) == stages
    assert {stage: memory[stage]["at_once"] for stage in stages} == dict(zip(stages, (4, 8, 8, 8, 8), strict=True))
    for values in memory.values():
        parts = [*values["weights"].values(), *(values[name] for name in ("gradients", "optimizer", "average"))]
        assert values["total"] == sum(parts) + max(values["activations"], values["update"])
        assert values["largest"] in {*(f"weights {name}" for name in values["weights"]), "activations", "update"}
    *stages_costs, whole = fresh["cost"]
    cost = {finding.values["stage"]: finding.values for finding in stages_costs}
    assert list(cost) == stages
    trained = cost["finetune"]
    assert trained["step_flops"] == 8 * (trained["forward_flops_image"] + trained["backward_flops_image"])
    assert cost["sample: latents"]["forward_flops_image"] == 3 * 2 * trained["forward_flops_image"]
    for name, hours in whole.values["hours"].items():
        assert hours == pytest.approx(sum(values["hours"][name] for values in cost.values()))


def test_one_line_a_finding(fresh: dict[str, list[Finding]]) -> None:
    for findings in fresh.values():
        for finding in findings:
            assert "\n" not in str(finding)
            assert finding.level in str(finding)


def test_a_finished_run_is_examined_with_its_caches(recipe: Path, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    found = looked(yaml.safe_load(recipe.read_text()), finished.parent)
    assert "failed" not in set().union(*levels(found).values())
    assert "Latents of 40 images for finetune fit" in found["latent cache"][0].found
    assert "cached images" in found["training step"][0].found
    assert len(found["latents"]) == 2  # base and detail
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_cache_of_another_autoencoder_is_found(recipe: Path, copied: Path) -> None:
    config = copied / "tokenizer" / "config.json"
    changed = json.loads(config.read_text()) | {"detail_mean": [0.5] * 4}
    config.write_text(json.dumps(changed))
    found = looked(yaml.safe_load(recipe.read_text()), copied.parent)
    assert levels(found)["latent cache"] == {"failed"}
    assert "Rebuild it with 'davae cache RECIPE'" in found["latent cache"][0].found
    assert levels(found)["training step"] == {"left out"}
    assert levels(found)["cost"] == {"ok"}


def test_an_uncalibrated_autoencoder_is_found(recipe: Path, copied: Path) -> None:
    config = copied / "tokenizer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"detail_mean": None, "detail_std": None}))
    found = looked(yaml.safe_load(recipe.read_text()), copied.parent)
    assert "not calibrated" in found["latents"][1].found
    assert found["latents"][1].level == "warning"


def test_a_missing_pair_fails_and_hides_nothing_else(tmp_path: Path) -> None:
    found = looked(tiny(tmp_path / "nowhere"), tmp_path / "runs")
    by_check = levels(found)
    assert by_check["data"] == {"ok"}
    assert by_check["pair"] == by_check["tokens"] == {"failed"}
    assert "There is no autoencoder in" in found["pair"][0].found
    for check in ("fit", "keys", "step 0", "latents", "latent cache", "training step", "memory", "cost"):
        assert by_check[check] == {"left out"}, check


def test_parts_that_are_no_pair_fail(pair: Path, tmp_path: Path) -> None:
    other = build_tiny_pair(tmp_path / "other")
    config = other / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 6}))
    found = looked(tiny(other), tmp_path / "runs")
    assert "AutoencoderDC has 4 latent channels, LightningDiT takes 6" in found["pair"][0].found


def test_a_size_that_does_not_fit_fails(pair: Path, tmp_path: Path) -> None:
    found = looked(tiny(pair, image_size=36), tmp_path / "runs")
    assert levels(found)["fit"] == levels(found)["tokens"] == {"failed"}
    assert "multiple of 8" in found["tokens"][0].found


def test_what_is_missing_may_be_stood_for(tmp_path: Path) -> None:
    values = {"name": "x", "pair": "lightningdit-xl", "sample": {"count": 2, "steps": 3, "batch_size": 2}}
    (tokens, *_) = looked(values, tmp_path)["tokens"]
    assert "--model LightningDiT-XL/1" in tokens.advice
    found = looked(values, tmp_path, model="LightningDiT-B/1", devices=2, gpu="H100")
    assert "failed" not in set().union(*levels(found).values())
    assert "on 2 H100" in found["cost"][0].found


def test_more_classes_than_the_pair_knows_fail(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = Run(parse_recipe(tiny(pair)), tmp_path / "runs")
    monkeypatch.setattr(current.data.train, "class_names", tuple(map(str, range(19))))
    fit = [finding for finding in examine(current) if finding.check == "fit"]
    assert "more classes than the pair" in fit[0].found


def test_an_unequal_start_is_found(pair: Path, tmp_path: Path) -> None:
    examination = Examination(Run(parse_recipe(tiny(pair)), tmp_path / "runs"))
    widened, _ = examination.widened
    with torch.no_grad():
        widened.x_embedder.proj.weight[:, 4:] = 1e-3
    (finding,) = check_step_zero(examination)
    assert finding.level == "failed"


def test_an_init_other_than_zero_is_a_warning(pair: Path, tmp_path: Path) -> None:
    recipe = tiny(pair)
    recipe["finetune"]["init"] = "repeat"
    (finding,) = check_step_zero(Examination(Run(parse_recipe(recipe), tmp_path / "runs")))
    assert finding.level == "warning"
    assert "init: repeat" in finding.advice


@pytest.mark.parametrize("broken", ["x_embedder.proj.weight", "final_layer.linear.bias"])
def test_numbers_that_are_not_finite_are_found(pair: Path, tmp_path: Path, broken: str) -> None:
    examination = Examination(Run(parse_recipe(tiny(pair)), tmp_path / "runs"))
    widened, _ = examination.widened
    with torch.no_grad():
        widened.get_parameter(broken)[0] = float("nan")
    assert check_step_zero(examination)[0].level == "failed"
    (finding,) = check_training_step(examination)
    assert finding.level == "failed"
    assert "Not finite" in finding.found


def test_memory_against_a_device(pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from davae.evaluate import gpus

    small = gpus.Gpu("Tiny", 1, 1, 1 << 16)
    monkeypatch.setitem(gpus.GPUS, "Tiny", small)
    found = looked(tiny(pair), tmp_path / "runs", gpu="tiny")
    by_stage = {finding.values["stage"]: finding for finding in found["memory"]}
    assert {finding.level for finding in by_stage.values()} == {"failed"}
    assert "Set finetune.gradient_checkpointing: true; or raise finetune.accumulation" in by_stage["finetune"].advice
    assert by_stage["tokenizer"].advice.startswith("Raise tokenizer.accumulation")  # no checkpointing over its base
    assert by_stage["cache"].advice == "Lower cache.batch_size."
    assert "on one Tiny" in found["cost"][0].found


def test_a_recipe_that_makes_its_pair(tmp_path: Path) -> None:
    recipe = tiny("embedded")
    del recipe["pair"]
    blocks = {"encoder_block_out_channels": [8, 16], "decoder_block_out_channels": [8, 16]}
    kinds = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "latent_channels": 4}
    layers = {"encoder_layers_per_block": [1, 1], "decoder_layers_per_block": [1, 1]}
    scales = {"encoder_qkv_multiscales": [[], []], "decoder_qkv_multiscales": [[], []]}
    training = {"steps": 2, "batch_size": 4}
    recipe["pretrain"] = {
        "image_size": 16,
        "autoencoder": {**training, "model": "AutoencoderDC", "model_config": blocks | kinds | layers | scales},
        "transformer": {
            **training,
            "model_config": {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2},
        },
    }
    found = looked(recipe, tmp_path / "runs")
    assert levels(found)["pair"] == {"left out"}
    assert [finding.values["stage"] for finding in found["memory"]] == [
        *("pretrain.autoencoder", "pretrain.cache", "pretrain.transformer", "tokenizer", "cache", "finetune"),
        *("sample: latents", "sample: images"),
    ]
    assert "failed" not in set().union(*levels(found).values())


def test_the_report_is_written_only_where_asked(pair: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "doctor.json"
    assert report(parse_recipe(tiny(pair)), tmp_path / "runs", said.append, gpu="H100", out=out)
    written = json.loads(out.read_text())
    assert written["healthy"]
    assert {finding["check"] for finding in written["findings"]} == set(CLASS_CHECKS)
    assert written["assumptions"]
    assert len(said) == len(written["findings"]) + len(written["assumptions"])
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_unknown_names_are_refused_at_once(pair: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(tiny(pair))
    with pytest.raises(ValueError, match="not in the table"):
        report(recipe, tmp_path, print, gpu="GTX 1080")
    with pytest.raises(ValueError, match="no published model"):
        report(recipe, tmp_path, print, model="SD9")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pair = build_tiny_text_pair(tmp_path_factory.mktemp("text") / "sd3")
    recipe = tiny(pair, name="text", prompts={"max_length": MAX_LENGTH, "dtype": "float32"})
    del recipe["sample"], recipe["evaluate"]
    recipe["finetune"] |= {"lora": {"rank": 2}, "gradient_checkpointing": True, "cosine_weight": 0.0}
    return recipe


def test_a_text_pair_passes(text: dict[str, Any], tmp_path: Path) -> None:
    found = looked(text, tmp_path / "runs")
    assert "failed" not in set().union(*levels(found).values())
    assert "different captions" in found["data"][0].found
    assert "No prompts are cached yet" in found["prompt cache"][0].found
    assert found["cost"][2].values["transformer_adapters_parameters"] > 0
    assert found["tokens"][0].values == {"base": 4, "upgraded": 4, "native": 16}


def test_a_text_run_is_examined_with_its_caches(text: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(text))
    for verb in ("train-tokenizer", "cache", "prompts"):
        status, said = run(tmp_path / "text.yaml", tmp_path / "runs", verb=verb)
        assert status == 0, said
    found = looked(text, tmp_path / "runs")
    assert "failed" not in set().union(*levels(found).values())
    assert "prompts for finetune fit" in found["prompt cache"][0].found
    assert "cached images" in found["training step"][0].found
    longer = text | {"prompts": {"max_length": MAX_LENGTH - 4, "dtype": "float32"}}
    found = looked(longer, tmp_path / "runs")
    assert levels(found)["latent cache"] == {"ok"}
    assert levels(found)["prompt cache"] == {"failed"}
    assert "max_length of the cache 12, of the recipe 8" in found["prompt cache"][0].found


def test_a_text_pair_without_captions_fails(
    text: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = Run(parse_recipe(text), tmp_path / "runs")
    monkeypatch.setattr(current.data.train, "captions", [""] * 40)
    data = [finding for finding in examine(current) if finding.check == "data"]
    assert {finding.level for finding in data} == {"ok", "failed"}


@pytest.fixture(scope="module")
def sd35(tmp_path_factory: pytest.TempPathFactory) -> Examination:
    """The recipe of SD3.5 with the costs of its stages, which no device changes."""
    recipe = load_recipe(SD35, ["data.kind=solids"])
    examination = Examination(Run(recipe, tmp_path_factory.mktemp("sd35")))
    assert examination.stage_costs
    return examination


def on(examination: Examination, gpu: str) -> Examination:
    """The same for another device."""
    other = copy.copy(examination)
    other.gpu = gpu
    return other


@pytest.mark.slow
def test_sd35_is_counted_without_its_weights(sd35: Examination) -> None:
    examination = on(sd35, "H100")
    wanted = {check.name: check for check in CHECKS}
    assert wanted["tokens"].look(examination)[0].values == {"base": 1024, "upgraded": 1024, "native": 4096}
    (cost,) = (f.values for f in wanted["cost"].look(examination) if f.values.get("stage") == "finetune")
    assert round(cost["transformer_adapters_parameters"] / 1e6, 1) == 245.0
    # 4 N a token forward and, with frozen weights and recomputation, about twice that backward.
    assert 2e12 < cost["forward_flops_image"] < 4e12
    assert 5 < cost["hours"]["H100"] < 12


@pytest.mark.slow
def test_the_how_to_of_sd35_names_a_gpu_that_is_enough(sd35: Examination) -> None:
    examination = on(sd35, "RTX 4090")
    memory = {check.name: check for check in CHECKS}["memory"].look(examination)
    assert [str(finding) for finding in memory if finding.level == "failed"] == []
    by_stage = {finding.values["stage"]: finding.values for finding in memory if finding.values}
    # One image of 1024 px with LPIPS, discriminator and gradient checkpointing.
    assert by_stage["tokenizer"]["at_once"] == 1
    assert 10 * 2**30 < by_stage["tokenizer"]["activations"] < 12 * 2**30
