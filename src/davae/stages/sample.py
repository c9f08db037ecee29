"""`davae sample`: images from the upgraded pair, or from a pair as it is, sharded over processes, resumable."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from davae.report.figures import image_grid
from davae.stages.drawing import Drawer, drawer_of, drawn_inputs, load_drawn
from davae.stages.drawn import Drawn
from davae.stages.run import Run, settings

SHOWN = 36
"""Images of the grid."""


def inputs(run: Run) -> dict[str, Any]:
    """What the samples depend on."""
    return {"sample": settings(run.recipe.sample), **drawn_inputs(run)}


def work(run: Run) -> None:
    """Draw `count` images to samples/: latents in shards, a PNG an image or an npz of all, a grid."""
    accelerator, drawn = run.accelerator, _drawn(run)
    if accelerator.is_main_process:
        drawn.prepare()
    accelerator.wait_for_everyone()
    drawer = drawer_of(run, load_drawn(run).to(accelerator.device), run.recipe.image_size)
    _draw(run, drawn, drawer)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        drawn.finish(drawer.condition_names(range(drawn.config.count)))
        first = torch.cat(list(drawn.first_latents(SHOWN)))
        image_grid(drawer.images(first), columns=9).save(drawn.folder / "grid.png")


def _draw(run: Run, drawn: Drawn, drawer: Drawer) -> None:
    """This process's share of what is missing."""
    mine = drawn.batches[run.accelerator.process_index :: run.accelerator.num_processes]
    missing = [batch for batch in mine if not (drawn.has_latents(batch) and drawn.has_images(batch))]
    done = drawn.config.count - sum(map(len, missing))
    run.observer.begin("sample", drawn.config.count, done)
    for batch in missing:
        if drawn.has_latents(batch):
            latents = drawn.latents(batch)
        else:
            latents = drawn.store_latents(batch, drawer.latents(batch))
        drawn.store_images(batch, drawer.images(latents))
        done += len(batch)
        run.observer.advance(done)
    run.observer.end()


def drawn_latents(run: Run, count: int | None = None) -> Iterator[Tensor]:
    """The latents of the first `count` drawn images (None: of all), in order, shard by shard: [B, K, h, w] each.

    Raises:
        ValueError: the images of this recipe are not drawn, or not all of them.
    """
    drawn = _drawn(run)
    drawn.require_all()
    return drawn.first_latents(drawn.config.count if count is None else count)


def _drawn(run: Run) -> Drawn:
    assert run.recipe.sample is not None
    return Drawn(run.folder / "samples", run.recipe.sample, inputs(run))
