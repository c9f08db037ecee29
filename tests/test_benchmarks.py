"""The benchmarks of transformers and of the data path: their geometries are the published ones, and they run."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

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
