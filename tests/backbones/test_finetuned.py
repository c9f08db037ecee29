"""What a training left, on an upgraded stock pipeline: LoRA, heads, autoencoder and scheduler."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file

import davae
from backbones.families import PIPELINES
from backbones.trained import DETAIL, images, predict, trained, upgraded
from conftest import assert_close
from davae import DetailLagScheduler, load_finetuned
from davae.backbones.adapter import HEADS_FILE, LORA_FILE, load_adapter, save_adapter
from tiny_text import tiny_text_pipeline

LOADERS = ("sd3", "flux", "flux2", "sana")


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
@pytest.mark.parametrize("name", LOADERS)
def test_stock_pipelines_load_the_lora_and_draw_as_merged(name: str, tmp_path: Path) -> None:
    family = PIPELINES[name]
    pipes = [upgraded(family) for _ in range(2)]
    plain = images(family, pipes[0])
    save_adapter(trained(name, upgraded(family).transformer), tmp_path, DETAIL)
    attached, merged = load_finetuned(pipes[0], tmp_path), load_finetuned(pipes[1], tmp_path, merge=True)
    assert (attached, merged) == (pipes[0], pipes[1])
    want = images(family, merged)
    assert (want - plain).abs().max() > 0.01
    assert_close(images(family, attached), want, 1e-5)
    assert attached.get_list_adapters() == {"transformer": ["default_0"]}
    attached.unload_lora_weights()  # the heads stay
    assert torch.equal(
        attached.transformer.get_submodule(family.head).weight,
        load_file(tmp_path / HEADS_FILE)[f"{family.head}.weight"],
    )
    assert (images(family, attached) - want).abs().max() > 1e-3
    attached.load_lora_weights(tmp_path)  # as a user would, without davae
    assert_close(images(family, attached), want, 1e-5)


@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
def test_pipelines_without_lora_get_it_merged(tmp_path: Path) -> None:
    family = PIPELINES["pixart"]
    model = trained("pixart", upgraded(family).transformer)
    save_adapter(model, tmp_path, DETAIL)
    pipe = load_finetuned(upgraded(family), tmp_path)
    assert not hasattr(pipe, "load_lora_weights")
    with torch.no_grad():
        assert_close(predict("pixart", pipe.transformer), predict("pixart", model), 1e-5)


def test_a_run_brings_its_autoencoder(tmp_path: Path) -> None:
    family = PIPELINES["sd3"]
    pipe = upgraded(family)
    save_adapter(trained("sd3", upgraded(family).transformer), tmp_path / "run" / "transformer", DETAIL)
    autoencoder = upgraded(family).vae
    with torch.no_grad():
        for weight in autoencoder.decoder.parameters():
            weight.add_(1.0)
    autoencoder.save_pretrained(tmp_path / "run" / "tokenizer")
    load_finetuned(pipe, tmp_path / "run")
    for name, weight in autoencoder.state_dict().items():
        assert torch.equal(pipe.vae.state_dict()[name], weight), name
    narrow = davae.upgrade(family.make(), detail_channels=4)
    narrow.vae.save_pretrained(tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"does not fit the pipeline: got .*detail_channels=4\), compression"):
        load_finetuned(upgraded(family), tmp_path / "run", autoencoder=tmp_path / "narrow")


def text_pipeline() -> Any:
    """The upgraded text-to-image pair, whose own scheduler has shift 3."""
    pipe = davae.upgrade(tiny_text_pipeline(), image_size=32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def finish_run(folder: Path, scheduler: Any) -> Path:
    """What a fine-tuning leaves in its folder, with this scheduler."""
    pipe = text_pipeline()
    with torch.no_grad():
        for weight in pipe.vae.decoder.parameters():
            weight.mul_(1.1)
    pipe.vae.save_pretrained(folder / "tokenizer")
    save_adapter(trained("sd3", pipe.transformer), folder / "transformer", pipe.vae.layout.detail_channels)
    scheduler.save_pretrained(folder / "transformer" / "scheduler")
    return folder


def export(run: Path, target: Path) -> Any:
    """As `davae export` makes it: merged weights and the trained scheduler in a pipeline, saved, loaded as stock."""
    pipe = text_pipeline()
    load_adapter(pipe.transformer, run / "transformer")
    pipe.register_modules(
        vae=davae.AutoencoderDA.from_pretrained(run / "tokenizer"),
        scheduler=type(pipe.scheduler).from_pretrained(run / "transformer" / "scheduler"),
    )
    pipe.save_pretrained(target)
    exported = StableDiffusion3Pipeline.from_pretrained(target)
    exported.set_progress_bar_config(disable=True)
    return exported


def draw(pipe: Any, output_type: str = "latent") -> Any:
    generator = torch.Generator().manual_seed(4)
    settings = {"num_inference_steps": 4, "guidance_scale": 2.0, "max_sequence_length": 12}
    return pipe("a matte red cube", output_type=output_type, generator=generator, **settings).images


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.filterwarnings("ignore:This AutoencoderDA has not been trained")
@torch.no_grad()
def test_it_draws_what_the_exported_pipeline_draws(merge: bool, tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run", FlowMatchEulerDiscreteScheduler(shift=4.0))
    exported, pipe = export(run, tmp_path / "exported"), load_finetuned(text_pipeline(), run, merge=merge)
    assert pipe.scheduler.config.shift == exported.scheduler.config.shift == 4.0
    want = draw(exported)
    assert_close(draw(pipe), want, 1e-5)
    assert_close(torch.from_numpy(draw(pipe, "np")), torch.from_numpy(draw(exported, "np")), 1e-5)
    # With the pipeline's own shift it would be another image.
    pipe.register_modules(scheduler=text_pipeline().scheduler)
    assert (draw(pipe) - want).abs().max() > 0.01 * want.abs().max()


def test_the_scheduler_is_of_the_class_that_was_saved(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run", FlowMatchHeunDiscreteScheduler(shift=4.0))
    pipe = load_finetuned(text_pipeline(), run)
    assert type(pipe.scheduler) is FlowMatchHeunDiscreteScheduler
    assert pipe.scheduler.config.shift == 4.0
    assert pipe.config["scheduler"] == ("diffusers", "FlowMatchHeunDiscreteScheduler")
    DetailLagScheduler(4, 4, detail_lag=0.3, shift=2.0).save_pretrained(run / "transformer" / "scheduler")
    pipe = load_finetuned(text_pipeline(), run)
    assert pipe.config["scheduler"] == ("davae", "DetailLagScheduler")
    assert (pipe.scheduler.config["detail_lag"], pipe.scheduler.config["shift"]) == (0.3, 2.0)


def test_without_a_scheduler_beside_it_the_pipelines_own_stays(tmp_path: Path) -> None:
    run, pipe = finish_run(tmp_path / "run", FlowMatchEulerDiscreteScheduler(shift=4.0)), text_pipeline()
    scheduler = pipe.scheduler
    shutil.rmtree(run / "transformer" / "scheduler")
    assert load_finetuned(pipe, run).scheduler is scheduler


def test_parts_that_do_not_fit_leave_the_pipeline_as_it_was(tmp_path: Path) -> None:
    run, pipe = finish_run(tmp_path / "run", FlowMatchEulerDiscreteScheduler(shift=4.0)), text_pipeline()
    before = {name: weight.clone() for name, weight in pipe.transformer.state_dict().items()}
    parts = dict(pipe.components)
    (run / "transformer" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="names 'AutoencoderKL' of diffusers, which has no SchedulerMixin"):
        load_finetuned(pipe, run)
    with pytest.raises(ValueError, match=r"got a StableDiffusion3Pipeline with a AutoencoderKL. Call davae.upgrade"):
        load_finetuned(tiny_text_pipeline(), run)
    (run / "transformer" / LORA_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"There is no {LORA_FILE} in"):
        load_finetuned(pipe, run)
    assert dict(pipe.components) == parts
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.transformer.state_dict().items())


def test_folders_without_anything_to_load_are_explained(tmp_path: Path) -> None:
    pipe = text_pipeline()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "whole" / "pipeline").mkdir(parents=True)
    (tmp_path / "whole" / "pipeline" / "model_index.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, error, answer in (
        ("nowhere", FileNotFoundError, "nothing fine-tuned in .*nowhere: got no such folder, allowed are"),
        ("file", FileNotFoundError, "got a file"),
        ("run", FileNotFoundError, "has not been fine-tuned: it has no transformer/. Run 'davae finetune'"),
        ("whole", ValueError, "pipeline is a whole pipeline, .*Open it by the from_pretrained of its own class"),
        ("whole/pipeline", ValueError, "pipeline is a whole pipeline"),
        ("empty", FileNotFoundError, f"There is no {HEADS_FILE} in"),
    ):
        with pytest.raises(error, match=answer):
            load_finetuned(pipe, tmp_path / name)
    for given, answer in ((str(tmp_path), "got the name"), (None, "got None"), (pipe.vae, "upgraded already")):
        with pytest.raises(ValueError, match=f"takes an upgraded pipeline, then the folder of .*{answer}"):
            load_finetuned(given, pipe)


def test_other_autoencoders_and_moved_weights_are_refused(tmp_path: Path) -> None:
    run = finish_run(tmp_path / "run", FlowMatchEulerDiscreteScheduler(shift=4.0))
    tiny_text_pipeline().vae.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="is no upgraded one: got a AutoencoderKL. Give the tokenizer/ of a run"):
        load_finetuned(text_pipeline(), run, autoencoder=tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match="There is no autoencoder in .*nowhere"):
        load_finetuned(text_pipeline(), run, autoencoder=tmp_path / "nowhere")
    pipe = text_pipeline()
    cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="Cannot load fine-tuned parts into this SD3Trans.*: accelerate's"):
        load_finetuned(pipe, run)
