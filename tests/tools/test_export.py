"""An exported pipeline: complete, stock, the same images in another process, and nothing about this machine."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import davae
from davae.backbones.adapter import save_adapter
from davae.backbones.finetuned import load_finetuned
from davae.backbones.lora import prepare_lora
from davae.backbones.settings import LoraSettings
from davae.core.files import folder_hash
from davae.core.lock import LockedError, locked
from davae.evaluate.results import Measurement, Results
from davae.recipe import parse_recipe
from davae.run.run import Run
from davae.sampling.detail_lag import lagging
from davae.tools import export as tool
from davae.tools.export import Origin, export, export_run
from tiny_pair import build_tiny_pair
from tiny_text import build_tiny_text_pair, tiny_text_pipeline

PROMPT = "a red cube"
STEPS = 2
FRESH = """
import sys
import davae
import numpy as np, torch
from diffusers import StableDiffusion3Pipeline
pipe = StableDiffusion3Pipeline.from_pretrained(sys.argv[1], dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
np.save(sys.argv[2], pipe("a red cube", num_inference_steps=2, generator=torch.Generator().manual_seed(3),
                          output_type="np").images)
assert pipe.vae.config._class_name == "AutoencoderDA", type(pipe.vae)
assert type(pipe.scheduler) is davae.DetailLagScheduler, type(pipe.scheduler)
assert pipe.transformer.config.in_channels == 8
"""
pytestmark = pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")


def upgraded() -> Any:
    """A text pipeline whose detail, LoRA and heads have moved, LoRA merged, with a lag; the same bits every time."""
    torch.manual_seed(0)
    pipe = davae.upgrade(tiny_text_pipeline(), image_size=32)
    pipe.scheduler = lagging(pipe.scheduler, pipe.vae.layout, 0.2)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (*pipe.vae.decoder.parameters(), *pipe.transformer.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=noise))
    return pipe


def draw(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    return pipe(PROMPT, num_inference_steps=STEPS, generator=generator, output_type="np").images


def origin(tmp_path: Path) -> Origin:
    recipe = {
        "name": "tiny",
        "image_size": 32,
        "data": {"kind": "folder", "path": str(tmp_path / "photographs")},
        "tokenizer": {"from": str(tmp_path / "runs" / "first")},
        "sample": {"steps": STEPS, "guidance_scale": 4.0},
        "prompts": {"max_length": 12},
    }
    return Origin(name="tiny", recipe=recipe, base_model="stabilityai/stable-diffusion-3.5-medium")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    export(upgraded(), folder / "out", origin(folder))
    return folder / "out"


def test_a_fresh_process_draws_the_same_image(exported: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FRESH, str(exported), str(tmp_path / "image.npy")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    got, want = np.load(tmp_path / "image.npy"), draw(upgraded())
    assert got.shape == (1, 32, 32, 3)
    assert np.abs(got - want).max() <= 1e-5


def test_the_folder_is_complete(exported: Path) -> None:
    parts = {path.name for path in exported.iterdir()}
    encoders = {"text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"}
    models = {"transformer", "vae", "scheduler", *encoders}
    assert parts == {"model_index.json", "README.md", "NOTICE", "provenance.json", "checksums.json", *models}
    assert not list(exported.parent.glob(".*")), "a temporary name was left"
    assert not list(exported.rglob("*.bin"))
    provenance = json.loads((exported / "provenance.json").read_text())
    assert provenance["davae"] == davae.__version__
    assert provenance["recipe"]["sample"]["steps"] == STEPS


def test_the_card_says_how_it_is_drawn(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert (
        'pipe(prompt="a lighthouse at dawn", num_inference_steps=2, guidance_scale=4.0, max_sequence_length=12)'
        in card
    )
    assert "draw 32 px images, on 4 tokens: 2 times the side" in card
    assert "8 x 8 pixels and holds 4 base channels" in card
    assert (exported / "NOTICE").read_text().startswith("This Stability AI Model is licensed under")


def test_no_path_of_the_machine_is_published(exported: Path) -> None:
    for path in exported.rglob("*"):
        if path.suffix in (".json", ".md") or path.name == "NOTICE":
            assert str(exported.parent) not in path.read_text(), path
    assert json.loads((exported / "provenance.json").read_text())["recipe"]["data"]["path"] == "photographs"


def test_a_loaded_pipeline_is_exported_without_where_it_lay(exported: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(exported, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    export(pipe, tmp_path / "again", Origin(name="again", licence="none"))
    for path in (tmp_path / "again").rglob("*.json"):
        assert str(exported) not in path.read_text(), path
    assert not (tmp_path / "again" / "NOTICE").exists()
    for path in (tmp_path / "again").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            dtypes = {file.get_slice(key).get_dtype() for key in file.keys()} - {"I64"}  # noqa: SIM118
        assert dtypes == {"BF16"}, path
    assert "dtype=torch.bfloat16" in (tmp_path / "again" / "README.md").read_text()
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path / "again", dtype=torch.bfloat16)
    again.set_progress_bar_config(disable=True)
    assert np.abs(draw(again) - draw(pipe)).max() <= 1e-5


def test_a_taken_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="the folder is not empty. Name a new one, or pass --overwrite"):
        export(upgraded(), target, origin(tmp_path))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]
    with pytest.raises(ValueError, match="it is a file"):
        export(upgraded(), target / "thesis.txt", origin(tmp_path))
    with pytest.raises(ValueError, match="holds something else than a pipeline, and all of it would be replaced"):
        export(upgraded(), target, origin(tmp_path), overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "thesis.txt"]
    (target / "thesis.txt").unlink()
    export(upgraded(), target, origin(tmp_path))
    (target / "old.txt").write_text("old")
    export(upgraded(), target, origin(tmp_path), overwrite=True)
    assert not (target / "old.txt").exists()
    assert (target / "model_index.json").exists()


def test_a_folder_is_exported_to_by_one_command(tmp_path: Path) -> None:
    left = tmp_path / f".out.{platform.node().replace('.', '-')}.999999999.tmp"
    left.mkdir()
    with locked(tmp_path / ".out.lock", "x"), pytest.raises(LockedError, match=f"Folder {tmp_path / 'out'} is being"):
        export(upgraded(), tmp_path / "out", origin(tmp_path))
    assert not (tmp_path / "out").exists()
    export(upgraded(), tmp_path / "out", origin(tmp_path))
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_upgraded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its autoencoder is a AutoencoderKL, allowed is an AutoencoderDA"):
        export(tiny_text_pipeline(), tmp_path / "out", origin(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(upgraded(), tmp_path / "out", origin(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tool, "write_provenance", full)
    with pytest.raises(OSError, match="No space"):
        export(upgraded(), tmp_path / "out", origin(tmp_path), overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


TRAINING = {"steps": 3, "batch_size": 4}


def finished_run(tmp_path: Path, pair: Path, **sections: Any) -> Run:
    """A run whose folder is filled by hand."""
    values = {
        "name": "tiny",
        "data": {"kind": "solids", "count": 8, "test_count": 4},
        "pair": str(pair),
        "image_size": 32,
        "tokenizer": TRAINING,
        "cache": {},
        "sample": {"steps": STEPS, "guidance_scale": 1.5},
    }
    return Run(parse_recipe(values | sections), tmp_path / "runs")


def text_run(tmp_path: Path) -> Run:
    """LoRA and heads beside a tokenizer, as a text-to-image training leaves them."""
    pair = build_tiny_text_pair(tmp_path / "pair")
    settings = {"rank": 2, "alpha": 6.0}
    run = finished_run(
        tmp_path, pair, prompts={"max_length": 12}, finetune={**TRAINING, "lora": settings}, evaluate={}
    )
    pipe = davae.upgrade(tiny_text_pipeline(), image_size=32)
    pipe.vae.save_pretrained(run.folder.tokenizer)
    transformer = prepare_lora(pipe.transformer, LoraSettings(**settings), seed=0)
    with torch.no_grad():
        for weight in transformer.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    save_adapter(transformer, run.folder.finetuned(), detail_channels=4)
    pipe.scheduler.save_pretrained(run.folder.finetuned() / "scheduler")
    return run


def test_a_text_run_becomes_a_stock_pipeline(tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    run = text_run(tmp_path)
    (tmp_path / "pair" / "LICENSE.md").write_text("The agreement.")
    assert export_run(run, tmp_path / "out", dtype="float32") == tmp_path / "out"
    got = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", dtype=torch.float32)
    by_hand = load_finetuned(davae.upgrade(tiny_text_pipeline(), image_size=32), run.folder.root)
    for pipe in (got, by_hand):
        pipe.set_progress_bar_config(disable=True)
    assert np.abs(draw(got) - draw(by_hand)).max() <= 1e-5
    assert not any("lora" in key for key in got.transformer.state_dict())
    assert (tmp_path / "out" / "LICENSE.md").read_text() == "The agreement."
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| Transformer | 3 steps of 4, lr 0.0001, LoRA of rank 2 with patch embedder and head in full |" in card
    assert "base_model" not in card  # a folder is nobody's base model
    export_run(run, tmp_path / "out", overwrite=True, base_model="stabilityai/stable-diffusion-3.5-medium")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: stabilityai/stable-diffusion-3.5-medium" in card
    assert "dtype=torch.bfloat16" in card


def test_a_wrong_request_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    run = class_run(tmp_path)
    with pytest.raises(ValueError, match="Unknown licence; got 'my own'"):
        export_run(run, tmp_path / "out", licence="my own")
    with pytest.raises(ValueError, match="Cannot save in 'int4'; allowed: float32, float16, bfloat16"):
        export_run(run, tmp_path / "out", dtype="int4")  # type: ignore[arg-type]
    for folder in (tmp_path / "pair", run.folder.finetuned()):
        with pytest.raises(ValueError, match="the export is made from what lies there"):
            export_run(run, folder, overwrite=True)
        assert (folder / "model_index.json").exists()
    unfinished = finished_run(tmp_path / "other", tmp_path / "pair", finetune=TRAINING)
    with pytest.raises(FileNotFoundError, match="There is no pipeline/ in"):
        export_run(unfinished, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def class_run(tmp_path: Path) -> Run:
    """A whole upgraded pair, as a class-conditional training leaves it."""
    run = finished_run(tmp_path, build_tiny_pair(tmp_path / "pair"), finetune=TRAINING)
    pipe = davae.upgrade(davae.LightningDiTPipeline.from_pretrained(tmp_path / "pair"))
    pipe.save_pretrained(run.folder.finetuned())
    pipe.vae.save_pretrained(run.folder.tokenizer)
    return run


def test_a_class_conditional_run_is_exported_too(tmp_path: Path) -> None:
    run = class_run(tmp_path)
    export_run(run, tmp_path / "out", dtype="float32")
    images = []
    for folder in (tmp_path / "out", run.folder.finetuned()):
        pipe = davae.LightningDiTPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        images.append(pipe([3], STEPS, generator=torch.Generator().manual_seed(0), output_type="np").images)
    assert np.array_equal(*images)
    assert not (tmp_path / "out" / "NOTICE").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "from davae import LightningDiTPipeline" in card
    call = "pipe(class_labels=[0], num_inference_steps=2, guidance_scale=1.5, guidance_interval=(0.0, 1.0))"
    assert call in card


def test_results_of_other_weights_stay_behind(tmp_path: Path) -> None:
    run = class_run(tmp_path)
    Results(measurements=[Measurement("Generation", "upgraded", "SWD", 1.5)]).save(run.folder.results)
    export_run(run, tmp_path / "unknown")
    assert "SWD" not in (tmp_path / "unknown" / "README.md").read_text()
    run.record.finish("evaluate", {"pipeline": folder_hash(run.folder.finetuned())}, 1.0)
    export_run(run, tmp_path / "measured")
    assert "SWD" in (tmp_path / "measured" / "README.md").read_text()
    run.record.finish("evaluate", {"pipeline": "of another training"}, 1.0)
    export_run(run, tmp_path / "stale")
    assert "SWD" not in (tmp_path / "stale" / "README.md").read_text()
