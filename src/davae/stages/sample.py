"""`davae sample`: images from the upgraded pair, sharded over processes, resumable."""

import json
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from davae.data.latents import save_shard
from davae.report.figures import image_grid
from davae.stages.drawing import decode_images, draw_all
from davae.stages.run import Run, folder_hash, load_pair, settings


def inputs(run: Run) -> dict[str, Any]:
    """What the samples depend on."""
    return {"sample": settings(run.recipe.sample), "pipeline": folder_hash(run.path_of("finetune"))}


def work(run: Run) -> None:
    """Draw `count` images to samples/: a PNG an image, the latents in shards, a grid."""
    config = run.recipe.sample
    assert config is not None
    folder = run.folder / "samples"
    mark = json.dumps(inputs(run), sort_keys=True)
    accelerator = run.accelerator
    if accelerator.is_main_process:
        _clear_stale(run, mark)
    accelerator.wait_for_everyone()
    pipeline = load_pair(run.path_of("finetune")).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    batches = [
        list(range(s, min(s + config.batch_size, config.count))) for s in range(0, config.count, config.batch_size)
    ]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    missing = [batch for batch in mine if not (folder / _shard(batch[0])).exists()]
    run.observer.begin("sample", config.count, config.count - sum(map(len, missing)))
    done = config.count - sum(map(len, missing))
    for batch in missing:
        for indices, latents in draw_all(pipeline, config, batch):
            for index, pixels in zip(indices, decode_images(pipeline, latents), strict=True):
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{index:06d}.png")
            save_shard({"latent": latents.float()}, folder / _shard(indices[0]))
            done += len(indices)
            run.observer.advance(done)
    run.observer.end()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shown = min(36, config.count)
        image_grid(decode_images(pipeline, drawn_latents(run)[:shown]), columns=9).save(folder / "grid.png")


def drawn_latents(run: Run) -> Tensor:
    """The latents of every drawn image, in order: [count, K, h, w].

    Raises:
        ValueError: the images of this recipe are not drawn, or not all of them.
    """
    assert run.recipe.sample is not None
    folder, count = run.folder / "samples", run.recipe.sample.count
    marker = folder / "inputs.json"
    if not marker.exists() or marker.read_text() != json.dumps(inputs(run), sort_keys=True):
        raise ValueError(f"{folder} does not hold samples of these settings. Run 'davae sample RECIPE' first.")
    latents = [load_file(shard)["latent"] for shard in sorted(folder.glob("latents-*.safetensors"))]
    if (drawn := sum(map(len, latents))) != count:
        raise ValueError(f"{folder} holds {drawn} of {count} samples. Run 'davae sample RECIPE' to draw the others.")
    return torch.cat(latents)


def _shard(first: int) -> str:
    return f"latents-{first:06d}.safetensors"


def _clear_stale(run: Run, mark: str) -> None:
    """Drop what other settings drew; keep what an interrupted run of these settings left."""
    folder = run.folder / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "inputs.json"
    if marker.exists() and marker.read_text() == mark:
        return
    for file in (*folder.glob("*.png"), *folder.glob("latents-*.safetensors")):
        file.unlink()
    marker.write_text(mark)
