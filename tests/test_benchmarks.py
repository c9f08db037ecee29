"""The benchmarks: their geometries are the published ones, and they run."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from conftest import assert_close
from davae.cli import main
from davae.data.solids import SolidsSource
from tiny_space import tiny_space
from tiny_text import build_tiny_text_pair

Import = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Import]:
    """Imports a benchmark by name; they find each other as scripts of one folder."""
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


def throughput_row(benchmark: Import, name: str) -> dict:
    throughput = benchmark("throughput")
    arguments = throughput.parse(["--steps", "1", "--batch", "1", "--warmup", "0", "--tiny"])
    return throughput.measure(benchmark("geometries").ROWS[name].tiny(), arguments, torch.device("cpu"))


def test_rows_have_the_published_sizes(benchmark: Import) -> None:
    rows, tokens = benchmark("geometries").ROWS, benchmark("random_weights").tokens
    published = {
        "sd35m-1k": (64, 2.24),
        "sd35m-1k-upgraded": (32, 2.24),
        "sd35m-512-enlarged": (32, 2.24),
        "sd35m-2k": (128, 2.24),
        "sd35m-2k-upgraded": (64, 2.24),
        "lightningdit-512": (32, 0.68),
        "lightningdit-512-upgraded": (16, 0.68),
        "pixart-sigma": (64, 0.61),
        "hunyuan-dit": (64, 1.5),
        "sana-1.5": (32, 4.8),
        "flux-dev": (64, 11.9),
        "sd3-medium": (64, 2.03),
    }
    assert rows.keys() == published.keys()
    built = {id(row.model): row.model.build() for row in rows.values()}
    for name, (side, billions) in published.items():
        transformer = built[id(rows[name].model)]
        count = sum(weight.numel() for weight in transformer.parameters()) / 1e9
        assert tokens(rows[name], transformer) == side, name
        assert count == pytest.approx(billions, rel=0.02), name


def test_text_encoders_have_the_published_sizes(benchmark: Import) -> None:
    billions = {"CLIP-L": 0.124, "CLIP-G": 0.695, "T5-XXL": 4.76, "mT5-XL": 1.67, "BERT": 0.35, "Gemma-2-2B": 2.61}
    encoders = benchmark("geometries").ENCODERS
    assert encoders.keys() == billions.keys()
    for name, (model, config) in encoders.items():
        with torch.device("meta"):
            count = sum(weight.numel() for weight in model(config).parameters()) / 1e9
        assert count == pytest.approx(billions[name], rel=0.02), name


def test_a_pair_of_rows_is_measured_and_compared(benchmark: Import) -> None:
    names = ("lightningdit-512", "lightningdit-512-upgraded")
    results = {name: throughput_row(benchmark, name) for name in names}
    native, upgraded = results.values()
    assert native["tokens"] == 2 * upgraded["tokens"]
    assert native["image"] == "sum"
    assert native["image_seconds"] == pytest.approx(249 * native["step_seconds"] + native["decode_seconds"])
    throughput = benchmark("throughput")
    throughput.with_ratios(results)
    assert "image_ratio" not in native
    assert upgraded["image_ratio"] == pytest.approx(native["image_seconds"] / upgraded["image_seconds"])
    assert len(throughput.table(results).splitlines()) == 4


@pytest.mark.parametrize("name", ["sd35m-1k-upgraded", "pixart-sigma", "hunyuan-dit", "sana-1.5", "flux-dev"])
def test_a_stock_pipeline_draws_with_random_weights(benchmark: Import, name: str) -> None:
    result = throughput_row(benchmark, name)
    assert 0 < result["step_seconds"] < result["image_seconds"]
    assert result["decode_seconds"] > 0


def test_a_cascade_counts_its_second_stage(benchmark: Import) -> None:
    throughput, row = benchmark("throughput"), benchmark("geometries").ROWS["sd35m-512-enlarged"].tiny()
    given = ["--steps", "1", "--batch", "2", "--warmup", "0", "--tiny"]
    for spec, name in ((["--upscale", "lanczos"], "lanczos"), ([], "bilinear")):
        result = throughput.measure(row, throughput.parse([*given, *spec]), torch.device("cpu"))
        assert result["second_stage"] == name
        parts = 30 * result["step_seconds"] + result["decode_seconds"] + result["second_stage_seconds"]
        assert result["image_seconds"] == pytest.approx(parts / 2)
    assert "| 2nd stage |" in throughput.table({"row": result})
    assert throughput_row(benchmark, "sd35m-1k-upgraded")["second_stage_seconds"] is None


def test_upscalers_are_compared_on_photographs_and_behind_the_pair(
    benchmark: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, image in enumerate(SolidsSource(2).images(range(2), 32)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).crop((0, 0, 31, 32)).save(tmp_path / f"{index}.png")
    upscaling = benchmark("upscaling")
    out = tmp_path / "rows.json"
    assert upscaling.main(["--photographs", str(tmp_path), "--pair", "--count", "2", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    names = ["bilinear", "bicubic", "catmull-rom", "lanczos"]
    assert [row["upscaler"] for row in results["photographs"]] == names
    assert all(row["PSNR"] > 10 and 0 < row["SSIM"] <= 1 for row in results["photographs"])
    assert [row["upscaler"] for row in results["pair"]] == names
    for row in results["pair"]:
        assert row["128 px level"] > 0
        assert row["cascade"] > row["second stage"] > 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("| bicubic |")]) == 2
    with pytest.raises(SystemExit):
        upscaling.parse([])


def test_an_unknown_row_is_refused(benchmark: Import) -> None:
    with pytest.raises(SystemExit, match="No row begins with 'sd4'; allowed: sd35m-1k"):
        benchmark("throughput").parse(["--rows", "sd35m,sd4"])


def test_text_encoders_are_timed_for_both_prompts(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    t5 = T5Config(d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    encoders = benchmark("random_weights").ENCODERS
    monkeypatch.setitem(encoders, "CLIP-L", (CLIPTextModelWithProjection, clip))
    monkeypatch.setitem(encoders, "CLIP-G", (CLIPTextModelWithProjection, clip))
    monkeypatch.setitem(encoders, "T5-XXL", (T5EncoderModel, t5))
    throughput = benchmark("throughput")
    monkeypatch.setattr(throughput, "stopwatch", lambda run, device: run() and 1.0)
    row = benchmark("geometries").ROWS["sd35m-1k"]
    assert throughput.text_seconds(row, 1, True, torch.device("cpu")) == 6.0
    assert throughput.text_seconds(row, 1, False, torch.device("cpu")) == 3.0


def test_the_plain_transformer_is_the_same_function(benchmark: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = benchmark("transformer")
    monkeypatch.setitem(transformer.SIZES, "small", {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2})
    given = ["--sample-size", "4", "--channels", "3", "--batch", "2", "--rounds", "1"]
    result = transformer.measure(transformer.parse(given))
    assert result["difference"] <= transformer.TOLERANCE
    assert result["ratios"].keys() == {"forward", "step"}
    ours, plain, batch = transformer.pair(transformer.parse(given), torch.device("cpu"))
    with torch.no_grad():
        plain.blocks[1].w1.weight += 0.1
    with pytest.raises(AssertionError, match="the two differ"):
        transformer.agreement(ours, plain, batch)


@pytest.mark.parametrize("kind", ["shards", "folder"])
def test_openings_are_of_the_same_images(benchmark: Import, tmp_path: Path, kind: str) -> None:
    opening = benchmark("opening")
    opening.make(tmp_path / "set", 1024, kind)
    first, again = (opening.open_once(tmp_path / "set") for _ in range(2))
    assert first["images"] == 1024
    assert first["identity"] == again["identity"]
    assert again["seconds"] < 5


def test_the_data_path_is_that_of_fine_tuning(benchmark: Import, tmp_path: Path) -> None:
    data_path = benchmark("data_path")
    given = ["--workers", "0,1", "--samples", "8", "--batch", "2", "--steps", "5", "--step-seconds", "0.01"]
    result = data_path.measure(tmp_path, data_path.parse(given))
    assert [row["workers"] for row in result["waits"]] == [0, 1]
    for row in result["waits"]:
        assert 0 < row["share"] < 1
        assert row["share"] == pytest.approx(row["wait_ms"] / (row["wait_ms"] + 10))
    batch = data_path.training_set(tmp_path, 2).__getitems__([0, 1])
    assert batch["latent"].shape == batch["noise"].shape == (2, 32, 64, 64)
    assert batch["prompt_embeds"].shape == (2, 333, 4096)
    assert batch["prompt_embeds"].dtype == torch.bfloat16
    assert batch["pooled_prompt_embeds"].shape == (2, 2048)


@pytest.fixture(scope="module")
def text_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_text_pair(tmp_path_factory.mktemp("text"))


def rows_of(table: str) -> list[list[str]]:
    """Cells of a Markdown table without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_step_caches_are_compared_with_the_full_image(
    benchmark: Import, text_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("a red cube\na blue box\na green cone\n")
    step_cache = benchmark("step_cache")
    given = ["--pipeline", str(text_pair), "--prompts", str(tmp_path / "prompts.txt"), "--count", "2"]
    given += ["--caches", "taylorseer=1,taylorseer=2,pyramid=2", "--size", "16", "--steps", "6", "--device", "cpu"]
    step_cache.main(step_cache.parse([*given, "--max-length", "12"]))
    printed = capsys.readouterr().out
    full, nothing, *others = rows_of(printed)
    assert [row[0] for row in (full, nothing, *others)] == ["none", "taylorseer=1", "taylorseer=2", "pyramid=2"]
    assert nothing[3:] == ["0%", "inf", "inf"]
    for row in others:
        assert 0 < int(row[3].removesuffix("%")) < 100
        assert 5 < float(row[4]) < 100
        assert 5 < float(row[5]) < 100
    assert "2 images" in printed


def test_step_caches_are_timed_on_a_geometry_alone(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step_cache = benchmark("step_cache")
    full = step_cache.PUBLIC["SD3.5-Medium"]
    small = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    monkeypatch.setitem(step_cache.PUBLIC, "SD3.5-Medium", replace(full, config={**full.config, **small}))
    given = ["--depth", "3", "--size", "64", "--steps", "4", "--caches", "first-block=100", "--device", "cpu"]
    step_cache.main(step_cache.parse(given))
    printed = capsys.readouterr().out
    assert rows_of(printed)[1][0] == "first-block=100"
    assert 20 < int(rows_of(printed)[1][3].removesuffix("%")) < 75  # the second of three blocks, at 3 of 4 steps
    assert "Random weights say nothing about quality" in printed
    with pytest.raises(SystemExit):
        step_cache.parse(["--pipeline", "folder"])
    with pytest.raises(ValueError, match="no step cache 'fast'"):
        step_cache.parse(["--caches", "fast"])


def test_a_text_pair_is_trained_and_its_images_are_judged(
    benchmark: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_to_image = benchmark("text_to_image")
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    statistics = {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}
    autoencoder = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(4,) * 4,
        norm_num_groups=4,
        layers_per_block=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **blocks,
        **statistics,
    ).eval()
    autoencoder.save_pretrained(tmp_path / "vae")
    given = ["pair", str(tmp_path / "vae"), str(tmp_path / "pair"), "--steps", "2", "--images", "64"]
    arguments = text_to_image.parse(given)
    arguments.command(arguments)
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pair")
    assert (pipe.vae.config.scaling_factor, pipe.vae.config.latents_mean) == (1.0, None)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    before, after = (vae.encode(images).latent_dist for vae in (autoencoder, pipe.vae))
    assert_close(after.mean, (before.mean - 0.5) / 2)
    assert_close(after.std, before.std / 2)
    assert_close(pipe.vae.decode(after.mean).sample, autoencoder.decode(before.mean).sample)

    # 48 renderings as samples of a run: what a judge has learned of renderings holds for them.
    source, folder = SolidsSource(48, seed=5), tmp_path / "run" / "samples"
    folder.mkdir(parents=True)
    rows = []
    for index, (caption,) in enumerate(source.all_captions):
        pixels = source.images([index], 32)[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")
        rows.append(json.dumps({"file_name": f"{index:06d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    arguments = text_to_image.parse(["judge", str(tmp_path / "run"), "--steps", "20"])
    arguments.command(arguments)
    written = json.loads((tmp_path / "run" / "captions.json").read_text())
    assert written["images"] == 48
    table = written["accuracy"]
    assert json.loads(capsys.readouterr().out) == table
    assert table["chance"] == {"shape": 1 / 3, "material": 1 / 6, "colour": 1 / 8}
    assert table["drawn"]["colour"] > 0.3 > table["drawn, captions of others"]["colour"]


def test_alignment_weights_are_compared(
    benchmark: Import,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alignment = benchmark("alignment")
    judged = tmp_path / "judged"
    judged.mkdir()
    for index, image in enumerate(SolidsSource(3, seed=9).images(range(3), 32)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(judged / f"{index}.png")

    def in_this_process(command: list[str], check: bool) -> None:
        assert command[:3] == [sys.executable, "-m", "davae"]
        assert main(command[3:]) == 0

    monkeypatch.setattr(alignment, "subprocess", SimpleNamespace(run=in_this_process))
    given = [
        str(recipe),
        "--judge",
        str(judged),
        "--detail",
        "4",
        "--weights",
        "0,0.5",
        "--size",
        "32",
        "--count",
        "8",
    ]
    alignment.main(alignment.parse([*given, "--runs-dir", str(tmp_path / "runs"), "--set", "tokenizer.steps=2"]))
    rows = rows_of(capsys.readouterr().out)
    assert [row[:2] for row in rows] == [["4", "0"], ["4", "0.5"]]
    assert all(len(row) == 7 for row in rows)
    assert all(float(cell) > 0 for row in rows for cell in row[2:6])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny-d4-w0", "tiny-d4-w0.5"]


def test_evaluation_times_files_and_precision(benchmark: Import, tmp_path: Path, monkeypatch, capsys) -> None:
    evaluation = benchmark("evaluation")
    for number in range(3):
        Image.new("RGB", (12, 12), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(evaluation, "load", lambda loading: tiny_space())
    monkeypatch.setattr(evaluation, "bare", lambda space, count, batch: None)
    monkeypatch.setattr(evaluation, "one_after_the_other", lambda space, images, paths, batch: None)
    evaluation.time_features(evaluation.parse(["--images", str(tmp_path), "--rounds", "1"]))
    evaluation.time_precision_recall("30,20")
    said = capsys.readouterr().out
    assert "features from files" in said and "precision and recall of 30 x 20" in said


def test_evaluation_measures_memory_of_many_images(benchmark: Import, tmp_path: Path, monkeypatch) -> None:
    evaluation = benchmark("evaluation")
    assert evaluation.stand_in().compute(torch.zeros(2, 3, 2, 2))["pool"].shape == (2, 2048)
    monkeypatch.setattr(evaluation, "stand_in", tiny_space)
    evaluation._draw(tmp_path, 2)
    evaluation._draw(tmp_path, 3)
    before, after, elapsed = evaluation._frechet_distance(tmp_path, 3)
    assert 0 < before <= after and elapsed > 0
